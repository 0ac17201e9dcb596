"""The parts of a block: weights as PyTorch draws them, activation with BatchNorm, 1x1 products."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from convmixer_jax.depthwise.own_gradient import own_gradient
from convmixer_jax.model.act_norm import Groups, act_affine, act_norm

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
  only decides how groups are made of the maps. `with_gradient` is `act_norm`'s.
  """

  activation: str
  layout: str
  group_size: int | None
  momentum: float
  epsilon: float
  shards: int
  param_dtype: jax.typing.DTypeLike = jnp.float32
  with_gradient: bool = True

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
    settings["with_gradient"] = self.with_gradient
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
    if batch == 0:
      raise ValueError("train=True needs images for BatchNorm's statistics; this batch has none")
    size = self.group_size or batch
    if batch % size:
      raise ValueError(f"a batch of {batch} images cannot be cut into groups of group_size={size}")
    if size < batch and self._local_batch(x) % size:  # some groups lie on several devices
      groups = Groups(batch_axis, size)
      return act_norm(x, self.activation, groups=groups, **settings)

    def normalize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
      return act_norm(x, self.activation, **settings)

    shape = (*x.shape[:batch_axis], batch // size, size, *x.shape[batch_axis + 1 :])
    axes = (batch_axis, 0, 0)
    y, mean_gc, var_gc = jax.vmap(normalize, batch_axis, axes)(x.reshape(shape))
    return y.reshape(x.shape), mean_gc, var_gc

  def _local_batch(self, x: jax.Array) -> int:
    """Images on one device; if the mesh has explicit axes, the type of the maps tells."""
    return jax.typeof(x).sharding.shard_shape(x.shape)[self.layout.index("b")] // self.shards


def mix_channels(
  x: jax.Array, kernel_cf: jax.Array, layout: str, with_gradient: bool = True
) -> jax.Array:
  """The same matrix product at every position: a 1x1 convolution without its bias.

  It is of x's type. Its own gradient gives the kernel one of the kernel's type, so that what
  several devices add up is float32; `with_gradient=False` leaves all derivatives to JAX.
  """
  function = _mix_channels_with_gradient if with_gradient else _mix_channels
  return function(x, kernel_cf, layout)


def _mix_channels(x: jax.Array, kernel_cf: jax.Array, layout: str) -> jax.Array:
  # Two axes each: of products with more, XLA's CPU backend transposes the gradients.
  channels, features = kernel_cf.shape
  kernel_cf = kernel_cf.astype(x.dtype)
  if layout == "cbhw":
    return (kernel_cf.T @ x.reshape(channels, -1)).reshape(features, *x.shape[1:])
  return (x.reshape(-1, channels) @ kernel_cf).reshape(*x.shape[:-1], features)


def _mix_channels_forward(x: jax.Array, kernel_cf: jax.Array, layout: str) -> tuple[jax.Array, Any]:
  return _mix_channels(x, kernel_cf, layout), (x, kernel_cf)


def _mix_channels_backward(layout: str, kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel_cf = kept
  channels, features = kernel_cf.shape
  sum_up = functools.partial(
    jnp.matmul,
    preferred_element_type=kernel_cf.dtype,
    out_sharding=jax.typeof(kernel_cf).sharding,  # the batch may be cut over explicit axes
  )
  if layout == "cbhw":
    kernel_grad = sum_up(grad.reshape(features, -1), x.reshape(channels, -1).T).T
  else:
    kernel_grad = sum_up(x.reshape(-1, channels).T, grad.reshape(-1, features))
  return _mix_channels(grad, kernel_cf.T, layout), kernel_grad


_mix_channels_with_gradient = own_gradient(
  _mix_channels, _mix_channels_forward, _mix_channels_backward, arrays=2
)
