"""Loss and accuracies of a batch, and checks for finite values."""

from typing import Any

import jax
import jax.numpy as jnp

from convmixer_jax.optim.loss import cross_entropy

Sums = dict[str, jax.Array]


def sums(logits_bk: jax.Array, target_bk: jax.Array, mask_b: jax.Array) -> Sums:
  """Sums over the examples whose mask is 1; `averages` divides them by their "count".

  The label of an example is the argmax of its target. An example is correct if no
  other class has a higher logit; of equal ones, the lowest class wins.
  "top5_accuracy" exists if there are more than five classes.
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
  """Each sum divided by "count", the loss first, and without "count" itself."""
  names = sorted(totals.keys() - {"count"}, key=lambda name: (name != "loss", name))
  return {name: totals[name] / totals["count"] for name in names}


class NonFiniteError(ArithmeticError):
  """The loss, the gradient or an updated variable of a step is not finite."""


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def check_finite(step: int, variables: Any) -> None:
  """Waits for the variables and checks all their values.

  A finite gradient may still cause an update that is not finite.

  Raises:
    NonFiniteError: if any value is infinite or NaN.
  """
  if not _all_finite(variables):
    raise NonFiniteError(f"step {step}: a parameter or a running statistic is not finite")
