"""The parts of a block: weights as PyTorch draws them, and activation with BatchNorm."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from convmixer_jax.act_norm import Groups, act_affine, act_norm

# How weights are drawn before training.
INITIALIZERS = ("torch", "glorot")


class Weights(nn.Module):
  """A layer's kernel and bias, drawn at random.

  With "torch", both are PyTorch's U(-1/sqrt(fan_in), 1/sqrt(fan_in)), where fan_in is the number of
  inputs to an output: the product of all axes of the kernel but the last. With "glorot", the kernel
  is U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) and the bias 0, as in Keras and Flux.
  """

  initializer: str
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, *shape: int) -> tuple[jax.Array, jax.Array]:
    """The kernel, of this shape, and the bias, `shape[-1:]`."""
    init_kernel = init_bias = _uniform(1 / math.sqrt(math.prod(shape[:-1])))
    if self.initializer == "glorot":
      init_kernel, init_bias = nn.initializers.glorot_uniform(), nn.initializers.zeros
    kernel = self.param("kernel", init_kernel, shape, self.param_dtype)
    bias = self.param("bias", init_bias, shape[-1:], self.param_dtype)
    return kernel, bias


def _uniform(bound: float) -> nn.initializers.Initializer:
  def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None):
    del out_sharding
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class ActNorm(nn.Module):
  """The bias of the layer before, the activation, then BatchNorm, as PyTorch does it.

  Statistics are kept in float32, their variance unbiased. Under `jit` over a sharded batch they
  are those of the global batch, or of its groups, whatever the number of devices: `shards`, which
  only decides how groups are made of the maps.
  """

  activation: str
  layout: str
  group_size: int | None
  momentum: float
  epsilon: float
  shards: int
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, pre_bias: jax.Array, train: bool) -> jax.Array:
    """Maps in `layout` -> maps of their type; `train` is as in `ConvMixer.features`."""
    axis = self.layout.index("c")
    dim = x.shape[axis]
    scale = self.param("scale", nn.initializers.ones, (dim,), self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, (dim,), self.param_dtype)
    mean_ra = self.variable("batch_stats", "mean", jnp.zeros, (dim,), jnp.float32)
    var_ra = self.variable("batch_stats", "var", jnp.ones, (dim,), jnp.float32)
    vectors: dict[str, Any] = {"scale": scale, "bias": bias, "pre_bias": pre_bias}
    settings: dict[str, Any] = {"channel_axis": axis, "epsilon": self.epsilon}
    if not train:
      vectors |= {"mean": mean_ra.value, "var": var_ra.value}
      return act_affine(x, self.activation, **vectors, **settings)
    if self.is_initializing():  # its batch is no whole group
      return act_norm(x, self.activation, **vectors, **settings)[0]
    y, mean_gc, var_gc = self._normalize_groups(x, **vectors, **settings)
    count = x.size // len(mean_gc) // dim
    unbiased_gc = var_gc * (count / max(count - 1, 1))
    mean_ra.value = self.momentum * mean_ra.value + (1 - self.momentum) * mean_gc.mean(0)
    var_ra.value = self.momentum * var_ra.value + (1 - self.momentum) * unbiased_gc.mean(0)
    return y

  def _normalize_groups(
    self, x: jax.Array, **settings: Any
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The maps, and mean and variance [groups, channels]."""
    batch_axis = self.layout.index("b")
    batch = x.shape[batch_axis]
    size = self.group_size or batch
    if batch % size:
      raise ValueError(f"a batch of {batch} images cannot be cut into groups of group_size={size}")
    if size < batch and batch // self.shards % size:  # some groups lie on several devices
      groups = Groups(batch_axis, size)
      return act_norm(x, self.activation, groups=groups, **settings)

    def normalize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
      return act_norm(x, self.activation, **settings)

    shape = (*x.shape[:batch_axis], batch // size, size, *x.shape[batch_axis + 1 :])
    axes = (batch_axis, 0, 0)
    y, mean_gc, var_gc = jax.vmap(normalize, batch_axis, axes)(x.reshape(shape))
    return y.reshape(x.shape), mean_gc, var_gc
