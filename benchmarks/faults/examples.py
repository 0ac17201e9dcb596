"""Images and records that are corrupt on disk."""

import pathlib
import re

import numpy as np
import PIL.Image

from benchmarks.faults.runs import Bench, Outcome, Run, finished, lines, same_end
from convmixer_jax import prepare

TRIALS, LIMIT, IMAGES = 1, 3, 40  # images of each of two classes


def corrupt_examples(bench: Bench) -> Outcome:
  """With as many as allowed, each is named and both runs end alike; one more stops the run."""
  outcome = Outcome("corrupt JPEGs and records")
  photos = bench.root / "photos"
  _draw(photos)
  for _ in range(TRIALS):
    for dataset in ("folder", "blobs"):
      root = bench.new("data")
      if dataset == "folder":
        _draw(root)
      else:
        prepare.prepare("folder", data_dir=str(root), manual_dir=str(photos), name=dataset)
      flags = [
        "--config.model.dim=16",
        "--config.model.depth=1",
        "--config.model.num_classes=2",
        "--config.augment.mean=(0.5,0.5,0.5)",
        "--config.augment.std=(0.25,0.25,0.25)",
        f"--config.data.dataset={dataset}",
        f"--config.data.data_dir={root}",
        "--config.data.image_size=16",
        "--config.data.batch_size=16",
        "--config.data.eval_batch_size=16",
        "--config.data.cache=none",
        "--config.run.epochs=4",
        "--config.run.eval_every_epochs=2",
        "--config.run.checkpoint_every_steps=5",
        f"--config.run.max_corrupt={LIMIT}",
        f"--config.run.workers={2 * (dataset == 'blobs')}",
      ]
      victims = bench.random.sample(range(2 * IMAGES), LIMIT + 1)
      for victim in victims[:LIMIT]:
        _spoil(bench, root, dataset, "train", victim)
      _spoil(bench, root, dataset, "test", 2)
      whole = finished(bench.new("skipping"), flags)
      run = Run(bench.new("skipping"), flags)
      ended_well = run.wait() == 0
      warned = [x for x in run.output().splitlines() if "skipped a corrupt example" in x]
      counts = [x["num_examples"] for x in lines(run.workdir) if x["split"] == "eval"]
      honest = len(warned) == LIMIT + 1 and counts == [2 * IMAGES - 1] * len(counts)
      alike = same_end(whole, run.workdir)
      outcome.count(survived=ended_well and honest and alike, kept=alike)
      _spoil(bench, root, dataset, "train", victims[-1])
      run = Run(bench.new("stopping"), flags)
      code = run.wait()
      # With data workers, Python's `resource_tracker` may print the last line.
      told = run.line_with("error: ")
      outcome.seen = re.sub(r"(max_corrupt is \d+: ).*(?= Repair)", r"\1...", told)
      count = f"error: {LIMIT + 1} examples are corrupt, config.run.max_corrupt is {LIMIT}"
      outcome.count(survived=code == 1 and told.startswith(count))
  outcome.note = f"half with {LIMIT} of them, named and counted; half with one more, which stop; "
  outcome.note += "JPEGs without data workers, records with two"
  return outcome


def _draw(root: pathlib.Path) -> None:
  """Writes JPEGs of the same noise each time, brighter in one class than in the other."""
  random = np.random.default_rng(0)
  for split in ("train", "test"):
    for label, name in enumerate(("dark", "light")):
      (root / split / name).mkdir(parents=True)
      for i in range(IMAGES):
        pixels = random.integers(0, 200, (16, 16, 3)) + 50 * label
        file = root / split / name / f"{i:02}.jpg"
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(file, quality=90)


def _spoil(bench: Bench, root: pathlib.Path, dataset: str, split: str, index: int) -> None:
  """Truncates or zeroes a JPEG, or changes a byte of a record."""
  if dataset == "folder":
    file = sorted((root / split).rglob("*.jpg"))[index]
    content = file.read_bytes()
    place = bench.random.randrange(1, len(content) // 2)
    file.write_bytes(bench.random.choice((content[:place], content[:20], b"", bytes(len(content)))))
    return
  from array_record.python import array_record_module

  file = next(root.rglob(f"*-{split}.array_record*"))
  reader = array_record_module.ArrayRecordReader(str(file))
  record = reader.read([index])[0]
  reader.close()
  content = bytearray(file.read_bytes())
  content[content.index(record[-100:]) + bench.random.randrange(100)] ^= 0x55
  file.write_bytes(bytes(content))
