"""ImageNet's input on the host, compared with a Pillow pipeline like timm's.

Needs imagenet2012, or a sample of it, prepared. Three comparisons:

  crop     JPEG files to random crops of 224 pixels, bicubic, on one core
  policy   everything that the ImageNet recipe does on the host: for us only the crop, for
           Pillow also flip and RandAugment (rand-m9-mstd0.5-inc1), on one core
  loader   whole batches from records, with two worker processes and with one

  python -m benchmarks.input_pipeline --json=input_pipeline.json
"""

import importlib.metadata
import io
import math
import random
import time

from absl import app, flags
import numpy as np
import PIL.Image

from benchmarks import rounds
from convmixer_jax.data.batches import Batches
from convmixer_jax.data.datasets import open_source
from convmixer_jax.data.preprocess import Preprocess
from tests.pillow_augment import timm_rand_augment

_SIZE = 224
_CROPS = flags.DEFINE_integer("crops", 4, "Crops of each image per round.")
_IMAGES = flags.DEFINE_integer("images", 200, "Maximum number of images.")
_BATCHES = flags.DEFINE_integer("batches", 100, "Batches timed per round of the loader.")
_BATCH_SIZE = 40  # at most the size of the sample
_WARM_UP = 15  # batches, so that prefetched ones are not timed
_KERNELS = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)


def pillow_box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
  """timm's random crop as a Pillow box: left, top, right, bottom."""
  for _ in range(10):
    area = width * height * rng.uniform(0.08, 1)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if w <= width and h <= height:
      left, top = rng.randint(0, width - w), rng.randint(0, height - h)
      return left, top, left + w, top + h
  w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def pillow_crop(file: bytes, rng: random.Random, kernel: int) -> PIL.Image.Image:
  """Decodes and crops."""
  image = PIL.Image.open(io.BytesIO(file)).convert("RGB")
  return image.crop(pillow_box(*image.size, rng)).resize((_SIZE, _SIZE), kernel)


def pillow_policy(file: bytes, rng: random.Random) -> np.ndarray:
  """Decodes, crops, flips and augments."""
  image = pillow_crop(file, rng, rng.choice(_KERNELS))
  if rng.random() < 0.5:
    image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(timm_rand_augment(image, rng))


def likeness(files: list[bytes], preprocess: Preprocess) -> str:
  """Compares our crops with Pillow's for the same boxes, one for each file."""
  errors = []
  for number, file in enumerate(files):
    ours = preprocess(file, 3, np.random.default_rng(number))
    image = PIL.Image.open(io.BytesIO(file)).convert("RGB")
    top, left, height, width = preprocess.random_box(
      image.height, image.width, np.random.default_rng(number)
    )
    crop = image.crop((left, top, left + width, top + height))
    theirs = crop.resize((_SIZE, _SIZE), PIL.Image.Resampling.BICUBIC)
    errors.append(float(np.mean((ours.astype(float) - np.asarray(theirs)) ** 2)))
  different = [10 * math.log10(255**2 / error) for error in errors if error]
  text = f"{len(files) - len(different)} of {len(files)} equal"
  if different:
    text += f", PSNR of the others {np.median(different):.1f} dB, at least {min(different):.1f}"
  return text


def one_core(files: list[bytes]) -> list[dict]:
  """The rows "crop" and "policy"."""
  crops = files * _CROPS.value
  bicubic = Preprocess(_SIZE, "random_resized", interpolation="bicubic")
  either = Preprocess(_SIZE, "random_resized")
  rng, numpy_rng = random.Random(0), np.random.default_rng(0)
  bicubic_kernel = PIL.Image.Resampling.BICUBIC
  times = rounds.interleaved(
    {
      "Pillow crop": lambda: [np.asarray(pillow_crop(f, rng, bicubic_kernel)) for f in crops],
      "ours crop": lambda: [bicubic(f, 3, numpy_rng) for f in crops],
      "Pillow policy": lambda: [pillow_policy(f, rng) for f in crops],
      "ours policy": lambda: [either(f, 3, numpy_rng) for f in crops],
    },
    flags.FLAGS.rounds,
  )
  return [
    row(name, times[f"Pillow {name}"], times[f"ours {name}"], len(crops), compared)
    for name, compared in (("crop", likeness(files, bicubic)), ("policy", "-"))
  ]


def row(
  name: str, before: np.ndarray, after: np.ndarray, images: int, pixels: str
) -> dict[str, object]:
  """A row of the table from the seconds [rounds] for `images` images."""
  return {
    "comparison": name,
    "before, images/s": images / float(np.median(before)),
    "after, images/s": images / float(np.median(after)),
    "ratio": float(np.median(before / after)),
    "images": images,
    "pixels": pixels,
  }


def loader_seconds(batches: Batches, workers: int) -> float:
  """Seconds for the timed batches, after the warm-up."""
  iterator = batches.iterate(0, _WARM_UP + _BATCHES.value + _WARM_UP, workers)
  for _ in range(_WARM_UP):
    next(iterator)
  start = time.perf_counter()
  for _ in range(_BATCHES.value):
    next(iterator)
  seconds = time.perf_counter() - start
  iterator.close()
  return seconds


def loader() -> list[dict]:
  """The row "loader"."""
  source = open_source("imagenet2012", "train")
  batches = Batches(source, Preprocess(_SIZE, "random_resized"), _BATCH_SIZE, train=True)
  one, two = np.array(
    [[loader_seconds(batches, workers) for workers in (1, 2)] for _ in range(flags.FLAGS.rounds)]
  ).T
  return [row("loader", one, two, _BATCHES.value * _BATCH_SIZE, "-")]


def main(_: list[str]) -> None:
  """Prints a row for each comparison."""
  files = []
  for split in ("train", "validation"):
    source = open_source("imagenet2012", split)
    files += [file for file, _ in source.read(range(min(len(source), _IMAGES.value)))]
  files = files[: _IMAGES.value]
  rows = one_core(files) + loader()
  versions = ", ".join(
    f"{package} {importlib.metadata.version(package)}" for package in ("pillow", "simplejpeg")
  )
  title = f"n = {flags.FLAGS.rounds} rounds; {versions}"
  rounds.report(title, rows)


if __name__ == "__main__":
  rounds.define_flags()
  app.run(main)
