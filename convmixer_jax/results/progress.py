"""The progress of a run for its user: lines of metrics, a bar on a terminal, the time left."""

import sys
import time

import tqdm

from convmixer_jax import cli


class Progress:
  """Prints lines to stdout, and a progress bar to stderr if that is a terminal.

  Args:
    first_step: steps already done.
    total_steps: steps of the whole run.
    batch_size: images per step.
  """

  def __init__(self, first_step: int, total_steps: int, batch_size: int):
    self._total_steps, self._batch_size = total_steps, batch_size
    self._steps = 0
    self._bar = tqdm.tqdm(
      total=total_steps * batch_size,
      initial=first_step * batch_size,
      unit=" images",
      unit_scale=True,
      disable=not cli.is_terminal(sys.stderr),
      dynamic_ncols=True,
    )

  def advance(self) -> None:
    """Counts one finished step."""
    self._steps += 1
    if self._steps == 1:
      self._first_end = time.monotonic()
      self._bar.unpause()
    self._bar.update(self._batch_size)

  def print(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
    """Prints the metrics on one line; without a terminal, adds the time and the time left."""
    numbers = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
    text = f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {split}  {numbers}"
    if not cli.is_terminal(sys.stdout):
      now = time.strftime("%Y-%m-%d %H:%M:%S")
      seconds = self._seconds_left(step)
      text = f"{now}  {text}" + f"  eta {tqdm.tqdm.format_interval(seconds)}" * (seconds > 0)
    cli.print_line(text)

  def _seconds_left(self, step: int) -> float:
    """Estimates from the pace since the end of the first step, which is mostly compilation."""
    if self._steps < 2:
      return 0
    pace = (time.monotonic() - self._first_end) / (self._steps - 1)
    return pace * max(self._total_steps - step, 0)

  def close(self) -> None:
    """Closes the bar, and leaves it on the screen."""
    self._bar.close()


def _short(value: float) -> str:
  """Formats with four significant digits, or all integer digits from 1e3 to 1e9."""
  if isinstance(value, int):
    return str(value)
  return format(value, ".0f" if 1e3 <= abs(value) < 1e9 else ".4g")
