"""Writes the metrics of a run to `metrics.jsonl`, TensorBoard events and the terminal."""

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

OnMetrics = Callable[[int, str, dict[str, float]], None]


class Writer:
  """Writes the metrics of a run, on process 0 only.

  Args:
    workdir: directory of `metrics.jsonl` and the event files.
    first_step: step to resume from. Lines of later steps are dropped, because the
      resumed run repeats those steps.
    total_steps: steps of the whole run.
    batch_size: images per step, for the progress bar.
    check: raises an exception if another run has taken over the workdir.
    on_metrics: also gets each line, as `train` says.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    first_step: int,
    total_steps: int,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
    on_metrics: OnMetrics | None = None,
  ):
    self._check, self._on_metrics = check, on_metrics
    self._written: set[tuple[str, int]] = set()
    self._active = jax.process_index() == 0
    if not self._active:
      return
    # Object stores cannot append, so files are written locally and copied by `flush`.
    self._scratch = tempfile.TemporaryDirectory() if storage.is_remote(workdir) else None
    self._workdir = workdir
    self._directory = pathlib.Path(self._scratch.name) if self._scratch else workdir
    kept = [line for line in read_lines(workdir / "metrics.jsonl") if line["step"] <= first_step]
    self._written = {(line["split"], line["step"]) for line in kept}
    path = self._directory / "metrics.jsonl"
    storage.write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    self._jsonl = path.open("a", buffering=1)  # line buffered
    # Not tensorboardX's `SummaryWriter`: its queue blocks forever after a full disk.
    self._events = event_file_writer.EventsWriter(
      str(self._directory / "events"), f".{os.getpid()}"
    )
    resumed = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add_event(first_step + 1, session_log=resumed)  # discards later steps
    self._accuracies = {x["step"]: x["accuracy"] for x in kept if x["split"] == "eval"}
    self._progress = Progress(first_step, total_steps, batch_size)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error) -> None:
    if self._active:
      self._progress.close()
      for file in (self._events, self._jsonl):
        with contextlib.suppress(OSError):  # a full disk, already reported by the first write
          file.close()
      try:
        self.flush()
      finally:
        if self._scratch:
          self._scratch.cleanup()

  def flush(self) -> None:
    """Copies all lines to the workdir, if that is in an object store.

    Call it before each checkpoint: a resumed run only repeats the lines after the checkpoint.

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
    """Whether this line was written before the run was resumed; all processes must call it."""
    return processes.broadcast([(split, step) in self._written]) == [True]

  def write(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
    """Writes one line of `metrics.jsonl`: {"step", "epoch", "split", and the values}."""
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
    if self._on_metrics is not None:
      self._on_metrics(step, split, values)

  def say(self, text: str) -> None:
    """Prints a line to the terminal only."""
    if self._active:
      cli.print_line(text)

  def accuracy(self, step: int | None) -> float | None:
    """The accuracy of the evaluation at this step, on process 0; None if there was none."""
    return self._accuracies.get(step) if self._active and step is not None else None

  def _add_event(self, step: int, **content: Any) -> None:
    self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

  def advance(self) -> None:
    """Counts one finished step."""
    if self._active:
      self._progress.advance()
