"""Fetches training metrics from the device and averages them for the log."""

from collections.abc import Callable
import math
import time

import jax

from convmixer_jax.training.metrics import NonFiniteError, averages


class Meter:
  """Averages training metrics, and fetches those of a step while the next one runs.

  Args:
    every: number of steps between lines; the last step has a line, too. A line
      has the averages since the previous one (or since the run resumed), the
      learning rate and the gradient norm of its step, and images per second
      without compilation and evaluation.
    last: the number of the last step.
    write: called with the step and the values of a line.
  """

  def __init__(self, every: int, last: int, write: Callable[[int, dict[str, float]], None]):
    self._every, self._last, self._write = every, last, write
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._totals: dict[str, float] = {}
    self._seconds = self._timed_images = 0.0
    self._is_compiled = False
    self._clock = time.perf_counter()

  def add(self, step: int, values: dict[str, jax.Array]) -> None:
    """Adds a step whose values may still be computed, and fetches those of the previous step.

    Args:
      step: its number.
      values: `sums`, and "learning_rate" and "grad_norm".

    Raises:
      NonFiniteError: if the loss or the gradient norm of the previous step is not finite.
    """
    before, self._pending = self._pending, (step, values)
    if before is not None:
      self._take(*before)

  def settle(self) -> None:
    """Waits for the last step; raises as `add` does."""
    if self._pending is not None:
      self._take(*self._pending)
      self._pending = None

  def restart_clock(self) -> None:
    """Excludes the time since the last step, such as an evaluation, from images per second."""
    self._clock = time.perf_counter()

  def _take(self, step: int, values: dict[str, jax.Array]) -> None:
    host = {name: float(value) for name, value in jax.device_get(values).items()}
    last = {name: host.pop(name) for name in ("learning_rate", "grad_norm")}
    if not math.isfinite(host["loss"]) or not math.isfinite(last["grad_norm"]):
      raise NonFiniteError(
        f"step {step}: the loss is {host['loss'] / host['count']}, the gradient norm is "
        f"{last['grad_norm']}"
      )
    self._totals = {name: self._totals.get(name, 0.0) + value for name, value in host.items()}
    is_due = step % self._every == 0 or step == self._last
    now = time.perf_counter()
    if self._is_compiled or is_due:
      self._seconds += now - self._clock
      self._timed_images += host["count"]
    self._is_compiled, self._clock = True, now
    if is_due:
      rate = {"images_per_sec": round(self._timed_images / self._seconds, 2)}
      self._write(step, averages(self._totals) | last | rate)
      self._totals, self._seconds, self._timed_images = {}, 0.0, 0.0
