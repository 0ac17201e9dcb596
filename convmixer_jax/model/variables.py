"""A model's variables: their shapes and random initialization."""

from typing import Any

import jax
import jax.numpy as jnp

from convmixer_jax.model.convmixer import ConvMixer

# SIZES determines the shapes of all variables except the head's; IDENTITY also determines what the
# model computes. The other attributes of `ConvMixer` affect only training or speed.
SIZES = ("dim", "depth", "kernel_size", "patch_size")
IDENTITY = (*SIZES, "num_classes", "activation", "norm_epsilon")


def identity(of: Any) -> dict[str, Any]:
  """The `ConvMixer` arguments that define a model; `of` is a model or a config's `model`."""
  return {name: getattr(of, name) for name in IDENTITY}


def shapes(
  model: ConvMixer, channels: int, sharding: jax.sharding.Sharding | None = None
) -> dict[str, Any]:
  """{"params", "batch_stats"} as `jax.ShapeDtypeStruct`; uses no device.

  Args:
    model: any ConvMixer.
    channels: image channels.
    sharding: of all variables, for restoring a checkpoint.
  """
  model = model.clone(depthwise="xla")  # same variables, works on any platform
  shape = (1, model.patch_size, model.patch_size, channels)
  found = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
  return jax.tree.map(lambda x: x.update(sharding=sharding), found)


def fresh(model: ConvMixer, channels: int, seed: int) -> dict[str, Any]:
  """Randomly initialized variables, {"params", "batch_stats"}."""
  image_bhwc = jnp.zeros((1, model.patch_size, model.patch_size, channels))
  return jax.jit(model.init)(jax.random.key(seed), image_bhwc)
