"""Runs the blocks with rematerialization, or as a loop whose body is compiled once."""

from typing import Any

import jax
import jax.numpy as jnp

from convmixer_jax.model import act_norm

# What is computed again for the gradient, beside nothing: activations and normalizations, from the
# outputs of the convolutions, two feature maps a block; or whole blocks, from their inputs.
REMATS = ("none", "activations", "blocks")


def over_blocks(model: Any, x: jax.Array, train: bool, grid: tuple[int, int]) -> jax.Array:
  """Applies all blocks of a bound `ConvMixer` to `x`, as its `scan` and `remat` say.

  A loop also stores the inputs of its blocks: with `remat="activations"`, three maps a block.
  """
  names = [f"blocks_{i}" for i in range(model.depth)]
  if not names:
    return x
  block = model.blocks[0].clone(parent=None, name=None)

  def apply(x: jax.Array, variables: dict[str, Any]) -> tuple[jax.Array, Any]:
    y, updated = block.apply(variables, x, train, grid, mutable=["batch_stats"])
    return y, updated["batch_stats"]

  def one_by_one(x: jax.Array, variables: list[Any]) -> tuple[jax.Array, list[Any]]:
    updated = []
    for of_block in variables:
      x, batch_stats = apply(x, of_block)
      updated.append(batch_stats)
    return x, updated

  def loop(x: jax.Array, variables: list[Any]) -> tuple[jax.Array, list[Any]]:
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *variables)
    x, updated = jax.lax.scan(_remat(apply, model.remat), x, stacked)
    return x, [jax.tree.map(lambda array, i=i: array[i], updated) for i in range(model.depth)]

  # One checkpoint around all blocks: each one around a block would keep its input, too.
  looped = model.scan or model.remat == "blocks"
  run = loop if looped else _remat(one_by_one, model.remat)
  variables = [
    {kind: model.variables[kind][n] for kind in ("params", "batch_stats")} for n in names
  ]
  x, updated = run(x, variables)
  if train:
    for name, batch_stats in zip(names, updated, strict=True):
      model.put_variable("batch_stats", name, batch_stats)
  return x


def _remat(function: Any, remat: str) -> Any:
  if remat == "none":
    return function
  kept = act_norm.KEPT if remat == "activations" else ()
  return jax.checkpoint(function, policy=jax.checkpoint_policies.save_only_these_names(*kept))
