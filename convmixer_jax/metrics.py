"""The loss, and what is counted of a batch."""

from collections.abc import Callable
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

Sums = dict[str, jax.Array]


def cross_entropy(logits_bk: jax.Array, target_bk: jax.Array) -> jax.Array:
  """Cross-entropy of each example with its soft target, [b] float32, in nats."""
  return optax.softmax_cross_entropy(logits_bk, target_bk)


def sums(logits_bk: jax.Array, target_bk: jax.Array, mask_b: jax.Array) -> Sums:
  """Sums over the examples whose mask is 1; `averages` divides them by their "count".

  The label of an example is the class that has most of its target.
  "top5_accuracy" is among the sums where there are more than five classes. An
  example is right if no other class scores higher than its own, ties going to
  the lower class.
  """
  label_b1 = target_bk.argmax(-1, keepdims=True)
  rank_b = (logits_bk > jnp.take_along_axis(logits_bk, label_b1, 1)).sum(-1)
  result = {
    "loss": cross_entropy(logits_bk, target_bk),
    "accuracy": (logits_bk.argmax(-1) == label_b1[:, 0]).astype(jnp.float32),
    "count": jnp.ones_like(mask_b),
  }
  if logits_bk.shape[-1] > 5:
    result["top5_accuracy"] = (rank_b < 5).astype(jnp.float32)
  return {name: (value_b * mask_b).sum() for name, value_b in result.items()}


def averages(totals: dict[str, float]) -> dict[str, float]:
  """Each sum over "count", which is left out; the loss comes first."""
  names = sorted(totals.keys() - {"count"}, key=lambda name: (name != "loss", name))
  return {name: totals[name] / totals["count"] for name in names}


class NonFiniteError(ArithmeticError):
  """The loss or the gradient of a step, or what it made of a parameter, is not a finite number."""


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def check_finite(step: int, variables: Any) -> None:
  """Waits for the variables and looks at each number of them.

  A gradient that is finite may still make an update that is not.

  Raises:
    NonFiniteError: if one of them is infinite or not a number.
  """
  if not _all_finite(variables):
    raise NonFiniteError(f"step {step}: a parameter or a running statistic is not finite")


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
