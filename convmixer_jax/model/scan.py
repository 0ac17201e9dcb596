"""Runs the blocks as a loop whose body is compiled once, optionally with rematerialization."""

from typing import Any

import jax
import jax.numpy as jnp


def over_blocks(model: Any, x: jax.Array, train: bool, grid: tuple[int, int]) -> jax.Array:
  """Applies all blocks of a bound `ConvMixer` to `x`, with their variables stacked.

  With `model.remat`, only the inputs of the blocks are stored for the gradient.
  """
  names = [f"blocks_{i}" for i in range(model.depth)]
  if not names:
    return x
  block = model.blocks[0].clone(parent=None, name=None)

  def apply(x: jax.Array, variables: dict[str, Any]) -> tuple[jax.Array, Any]:
    y, updated = block.apply(variables, x, train, grid, mutable=["batch_stats"])
    return y, updated["batch_stats"]

  stacked = {
    kind: jax.tree.map(
      lambda *arrays: jnp.stack(arrays), *[model.variables[kind][n] for n in names]
    )
    for kind in ("params", "batch_stats")
  }
  x, updated = jax.lax.scan(jax.checkpoint(apply) if model.remat else apply, x, stacked)
  if train:
    for i, name in enumerate(names):
      model.put_variable("batch_stats", name, jax.tree.map(lambda array, i=i: array[i], updated))
  return x
