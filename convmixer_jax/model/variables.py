"""A model's variables: what decides their shapes, and fresh ones."""

from typing import Any

import jax
import jax.numpy as jnp

from convmixer_jax.model.convmixer import ConvMixer

# What decides the shapes of all variables but the head's; and what the model computes with them.
# The other attributes of `ConvMixer` are about training or speed.
SIZES = ("dim", "depth", "kernel_size", "patch_size")
IDENTITY = (*SIZES, "num_classes", "activation", "norm_epsilon")


def identity(of: Any) -> dict[str, Any]:
  """What `ConvMixer` needs to be this model; `of` is one, or a config's section `model`."""
  return {name: getattr(of, name) for name in IDENTITY}


def shapes(
  model: ConvMixer, channels: int, sharding: jax.sharding.Sharding | None = None
) -> dict[str, Any]:
  """{"params", "batch_stats"} of `jax.ShapeDtypeStruct`; asks for no device.

  Args:
    model: any.
    channels: of the images.
    sharding: of all of them, for a checkpoint that is to be restored.
  """
  model = model.clone(depthwise="xla")  # which has the same variables, wherever it runs
  shape = (1, model.patch_size, model.patch_size, channels)
  found = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
  return jax.tree.map(lambda x: x.update(sharding=sharding), found)


def fresh(model: ConvMixer, channels: int, seed: int) -> dict[str, Any]:
  """The variables {"params", "batch_stats"}, drawn at random."""
  image_bhwc = jnp.zeros((1, model.patch_size, model.patch_size, channels))
  return jax.jit(model.init)(jax.random.key(seed), image_bhwc)
