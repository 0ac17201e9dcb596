"""Training metrics on their way from the device to the log."""

from collections.abc import Callable
import math
import time

import jax

from convmixer_jax.training.metrics import NonFiniteError, averages


class Meter:
  """Training metrics, each step's fetched from the device while the next one runs.

  Args:
    every: a line is due at each multiple of so many steps, and at the last one.
      It has the averages since the line before (in a resumed run: since the
      resumption), its step's learning rate and gradient norm, and images per
      second without compilation and evaluation.
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
    """Takes a step's values as they are under way, and fetches those of the step before.

    Args:
      step: its number.
      values: `sums`, and "learning_rate" and "grad_norm".

    Raises:
      NonFiniteError: if loss or gradient norm of the step before are not finite.
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
    """Leaves out the time since the last step, in which something else was done."""
    self._clock = time.perf_counter()

  def _take(self, step: int, values: dict[str, jax.Array]) -> None:
    host = {name: float(value) for name, value in jax.device_get(values).items()}
    last = {name: host.pop(name) for name in ("learning_rate", "grad_norm")}
    if not math.isfinite(host["loss"]) or not math.isfinite(last["grad_norm"]):
      raise NonFiniteError(
        f"step {step}: the loss is {host['loss'] / host['count']}, the norm of the gradient "
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
