"""Full and read-only disks, and corrupt checkpoints."""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil
import signal
import subprocess

from benchmarks.faults.runs import (
  SAVE_EVERY,
  STEPS,
  Bench,
  Outcome,
  Run,
  checkpoints,
  final_state,
  newest,
  same_end,
)

DISKS, CORRUPTIONS, READ_ONLY = 3, 3, 2


@contextlib.contextmanager
def mounted(directory: pathlib.Path, options: str) -> Iterator[pathlib.Path]:
  """A file system in memory, unmounted at the end of the context.

  Raises:
    PermissionError: if mounting is not allowed.
  """
  directory.mkdir()
  mount(directory, options)
  try:
    yield directory
  finally:
    subprocess.run(["umount", str(directory)], check=True)


def mount(directory: pathlib.Path, options: str) -> None:
  """Mounts a file system in memory, or remounts it with other options."""
  command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise PermissionError(f"mounting needs root: {done.stderr.strip()}")


def full_disk(bench: Bench) -> Outcome:
  """Fills the disk during the run, within a save or at a line of the metrics."""
  outcome = Outcome("full disk")
  named = []
  for trial in range(DISKS):
    with mounted(bench.root / f"disk_{trial}", "size=100m") as disk:
      workdir, log = disk / "run", bench.root / f"disk_{trial}.log"
      first = Run(workdir, log=log)
      first.wait_for_step(bench.random.randrange(2 * SAVE_EVERY, STEPS // 2))
      first.signal_all(signal.SIGTERM)
      first.wait()
      good, before = newest(workdir), final_state(workdir)
      used = shutil.disk_usage(disk).used // 1024
      free = bench.random.randrange(4, max(_kilobytes(checkpoints(workdir)[0]) - 8, 8), 4)
      mount(disk, f"remount,size={used + free}k")
      run = Run(workdir, log=log)
      code = run.wait()
      outcome.seen = run.last_line().replace(str(disk), "DISK")
      clear = "No space left on device" in outcome.seen and outcome.seen.startswith("error: ")
      named.append(f"{workdir}/checkpoints/" in run.last_line())
      kept = newest(workdir) > good or all(
        (a == b).all() for a, b in zip(final_state(workdir), before, strict=True)
      )
      mount(disk, "remount,size=100m")
      alike = bench.ends_alike(workdir, log)
      outcome.count(survived=code == 1 and clear and alike, kept=kept and alike)
  outcome.note = f"ended with 1; {sum(named)} of the messages name a checkpoint"
  return outcome


def read_only(bench: Bench) -> Outcome:
  """Makes the workdir read-only, at the start of a run and when it is resumed."""
  outcome = Outcome("read-only workdir")
  for trial in range(READ_ONLY):
    with mounted(bench.root / f"fixed_{trial}", "size=100m") as disk:
      workdir, log = disk / "run", bench.root / f"fixed_{trial}.log"
      if trial:
        run = Run(workdir, log=log)
        run.wait_for_step(STEPS // 2)
        run.signal_all(signal.SIGTERM)
        run.wait()
      before = newest(workdir)
      mount(disk, "remount,ro")
      run = Run(workdir, log=log)
      code = run.wait()
      outcome.seen = run.last_line().replace(str(disk), "DISK")
      clear = len(run.output().splitlines()) == 1 and "cannot be written to" in outcome.seen
      kept = newest(workdir) == before
      mount(disk, "remount,rw")
      alike = bench.ends_alike(workdir, log)
      outcome.count(survived=code == 1 and clear and alike, kept=kept and alike)
  outcome.note = "one line, before any data are read"
  return outcome


def corrupt_checkpoint(bench: Bench) -> Outcome:
  """Corrupts the latest checkpoint of a killed run in four ways."""
  outcome = Outcome("corrupt latest checkpoint")
  start = bench.new("to_be_corrupt")
  run = Run(start)
  run.wait_for_step(STEPS // 2)
  run.signal_all(signal.SIGKILL)
  run.wait()
  older = checkpoints(start)[1]
  files = [path for path in checkpoints(start)[0].rglob("*") if path.is_file()]
  harmless = 0
  for spoil in (_truncate, _zero, _flip, _delete_half):
    for _ in range(CORRUPTIONS):
      workdir = bench.new("corrupt")
      shutil.copytree(start, workdir)
      file = workdir / bench.random.choice(files).relative_to(start)
      spoil(bench, checkpoints(workdir)[0], file)
      run = Run(workdir)
      ended_well = run.wait() == 0
      noticed = run.line_with("cannot be read")
      harmless += not noticed
      outcome.seen = noticed or outcome.seen
      used = f"at step {older.name} of" in run.output() or not noticed
      alike = same_end(bench.whole, workdir)
      outcome.count(survived=ended_well and used and alike, kept=alike)
  outcome.note = f"{harmless} of them in files that are not needed to resume"
  return outcome


def _kilobytes(checkpoint: pathlib.Path) -> int:
  """KiB that a checkpoint takes on disk, in blocks of 4."""
  files = [path for path in checkpoint.rglob("*") if path.is_file()]
  return sum(-(-file.stat().st_size // 4096) * 4 for file in files)


def _truncate(bench: Bench, checkpoint: pathlib.Path, file: pathlib.Path) -> None:
  content = file.read_bytes()
  file.write_bytes(content[: bench.random.randrange(len(content) or 1)])


def _zero(bench: Bench, checkpoint: pathlib.Path, file: pathlib.Path) -> None:
  file.write_bytes(bytes(file.stat().st_size))


def _flip(bench: Bench, checkpoint: pathlib.Path, file: pathlib.Path) -> None:
  content = bytearray(file.read_bytes())
  for place in bench.random.sample(range(len(content)), min(len(content), 3)):
    content[place] ^= bench.random.randrange(1, 256)
  file.write_bytes(bytes(content))


def _delete_half(bench: Bench, checkpoint: pathlib.Path, file: pathlib.Path) -> None:
  files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
  for each in bench.random.sample(files, len(files) // 2):
    each.unlink()
