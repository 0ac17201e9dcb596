"""A run's metrics: `metrics.jsonl`, TensorBoard events, and the same for the terminal."""

from collections.abc import Callable
import contextlib
import json
import math
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from convmixer_jax import cli, storage
from convmixer_jax.parallel import processes
from convmixer_jax.results.history import read_lines
from convmixer_jax.results.progress import Progress


class Writer:
  """Writes the metrics of a run; process 0 alone does.

  Args:
    workdir: holds `metrics.jsonl` and the event files.
    first_step: lines of later steps are dropped, since a resumed run takes
      those steps again.
    total_steps: of the whole run.
    batch_size: images in a step, for the progress bar.
    check: raises an exception if the workdir is not ours any more.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    first_step: int,
    total_steps: int,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
  ):
    self._check = check
    self._written: set[tuple[str, int]] = set()
    self._active = jax.process_index() == 0
    if not self._active:
      return
    # An object store takes whole files alone: they are written here, and copied by `flush`.
    self._scratch = tempfile.TemporaryDirectory() if storage.is_remote(workdir) else None
    self._workdir = workdir
    self._directory = pathlib.Path(self._scratch.name) if self._scratch else workdir
    kept = [line for line in read_lines(workdir / "metrics.jsonl") if line["step"] <= first_step]
    self._written = {(line["split"], line["step"]) for line in kept}
    path = self._directory / "metrics.jsonl"
    storage.write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    self._jsonl = path.open("a", buffering=1)  # each line reaches the file when it is written
    # Not tensorboardX's `SummaryWriter`: its queue blocks for ever once the disk was full.
    self._events = event_file_writer.EventsWriter(
      str(self._directory / "events"), f".{os.getpid()}"
    )
    resumed = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add_event(first_step + 1, session_log=resumed)  # later steps were taken in vain
    self._accuracies = {x["step"]: x["accuracy"] for x in kept if x["split"] == "eval"}
    self._progress = Progress(first_step, total_steps, batch_size)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error) -> None:
    if self._active:
      self._progress.close()
      for file in (self._events, self._jsonl):
        with contextlib.suppress(OSError):  # a full disk, which the first write has told of
          file.close()
      try:
        self.flush()
      finally:
        if self._scratch:
          self._scratch.cleanup()

  def flush(self) -> None:
    """Brings all lines to the workdir, where they are not written there at once.

    Comes before each checkpoint: a run that is killed repeats the steps after it, and their lines.

    Raises:
      UserError: if another run writes to the workdir.
    """
    if not self._active:
      return
    self._check()
    if self._scratch:
      for file in self._directory.iterdir():
        (self._workdir / file.name).write_bytes(file.read_bytes())

  def has(self, split: str, step: int) -> bool:
    """Whether this line was written before the run was resumed; all processes have to ask."""
    return processes.broadcast([(split, step) in self._written]) == [True]

  def write(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
    """One line of `metrics.jsonl`: {"step", "epoch", "split", and the values}."""
    if not self._active:
      return
    line = {"step": step, "epoch": round(epoch, 4), "split": split, **values}
    self._jsonl.write(json.dumps(line) + "\n")
    for name, value in values.items():
      self._add_event(step, summary=summary.scalar(f"{split}/{name}", value))
    self._events.flush()
    if split == "eval":
      self._accuracies[step] = values.get("accuracy", math.nan)
    self._progress.print(step, epoch, split, values)

  def say(self, text: str) -> None:
    """A line for the user alone."""
    if self._active:
      cli.print_line(text)

  def accuracy(self, step: int | None) -> float | None:
    """The accuracy of the evaluation at this step, if there was one; process 0 alone knows."""
    return self._accuracies.get(step) if self._active and step is not None else None

  def _add_event(self, step: int, **content: Any) -> None:
    self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

  def advance(self) -> None:
    """One step is done."""
    if self._active:
      self._progress.advance()
