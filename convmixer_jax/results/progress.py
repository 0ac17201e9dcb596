"""How far a run is, for its user: a line for each metric, a bar on a terminal, the time left."""

import sys
import time

import tqdm

from convmixer_jax import cli


class Progress:
  """Lines on stdout, and a bar on stderr where that is a terminal.

  Args:
    first_step: steps that are done already.
    total_steps: of the whole run.
    batch_size: images in a step.
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
    """One step is done."""
    self._steps += 1
    if self._steps == 1:
      self._first_end = time.monotonic()
      self._bar.unpause()
    self._bar.update(self._batch_size)

  def print(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
    """The metrics in one line; where there is no bar, with the time and how long it takes yet."""
    numbers = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
    text = f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {split}  {numbers}"
    if not cli.is_terminal(sys.stdout):
      now = time.strftime("%Y-%m-%d %H:%M:%S")
      seconds = self._seconds_left(step)
      text = f"{now}  {text}" + f"  eta {tqdm.tqdm.format_interval(seconds)}" * (seconds > 0)
    cli.print_line(text)

  def _seconds_left(self, step: int) -> float:
    """At the pace since the first step ended: that one is mostly compilation."""
    if self._steps < 2:
      return 0
    pace = (time.monotonic() - self._first_end) / (self._steps - 1)
    return pace * max(self._total_steps - step, 0)

  def close(self) -> None:
    """Leaves the bar as it is."""
    self._bar.close()


def _short(value: float) -> str:
  """Four digits, or all that stand before the point; an exponent only for what is really large."""
  if isinstance(value, int):
    return str(value)
  return format(value, ".0f" if 1e3 <= abs(value) < 1e9 else ".4g")
