"""What is counted of a batch."""

from typing import Any

import jax
import jax.numpy as jnp

from convmixer_jax.optim.loss import cross_entropy

Sums = dict[str, jax.Array]


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
