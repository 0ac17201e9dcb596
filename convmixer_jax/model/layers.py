"""The layers of a ConvMixer; they handle dtypes, sharding, dimension order and custom gradients.

The dimensions of a feature map are in `order`: "bhwc", "cbhw", or "cbp" with height and width
merged, where only the depthwise convolution needs to know them, as `grid`. The convolutions do not
add their bias: the `ActNorm` after them does, at no extra pass over memory.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
from flax.linen.dtypes import canonicalize_dtype
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh

from convmixer_jax.depthwise import depthwise_conv, gradients
from convmixer_jax.depthwise.no_inline import not_inlined
from convmixer_jax.depthwise.orders import reorder
from convmixer_jax.model.act_norm import Groups, act_affine, act_norm
from convmixer_jax.model.tpu_layout import store_by_image

DTYPES = ("float32", "bfloat16")


class PreActivation(NamedTuple):
  """A feature map and the [channels] bias that has not been added yet."""

  x: jax.Array
  bias: jax.Array


def _torch(fan_in: int) -> tuple[Callable, Callable]:
  def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None):
    del out_sharding
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init, init


def _glorot(fan_in: int) -> tuple[Callable, Callable]:
  del fan_in
  return nn.initializers.glorot_uniform(), nn.initializers.zeros


# Initializers of kernels and biases. "torch": both are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in
# PyTorch, where fan_in is the number of inputs per output. "glorot": kernels are U(-a, a) with
# a = sqrt(6 / (fan_in + fan_out)) and biases are 0, as in Keras and Flux.
INITIALIZERS = {"torch": _torch, "glorot": _glorot}


class _Linear(nn.Module, kw_only=True):
  """A layer with a bias and a kernel whose last axis is the output axis."""

  initializer: str = "torch"
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def _weights(self, *shape: int) -> tuple[jax.Array, jax.Array]:
    init_kernel, init_bias = INITIALIZERS[self.initializer](math.prod(shape[:-1]))
    kernel = self.param("kernel", init_kernel, shape, self.param_dtype)
    bias = self.param("bias", init_bias, shape[-1:], self.param_dtype)
    return kernel, bias


class PatchEmbedding(_Linear, kw_only=True):
  """Images to feature maps in `dtype`: a matrix product with each flattened patch."""

  dim: int
  patch_size: int
  dtype: jax.typing.DTypeLike | None
  order: str
  own_gradient: bool = True

  @nn.compact
  def __call__(self, image_bhwc: jax.Array) -> PreActivation:
    """Raises ValueError if `patch_size` does not divide the images' height and width."""
    size = self.patch_size
    kernel, bias = self._weights(size, size, image_bhwc.shape[-1], self.dim)
    dtype = canonicalize_dtype(image_bhwc, kernel, bias, dtype=self.dtype)
    if jnp.dtype(dtype) not in map(jnp.dtype, DTYPES):
      raise ValueError(
        f"dtype is None, which for {image_bhwc.dtype} images and {kernel.dtype} parameters means "
        f"{jnp.dtype(dtype)}; allowed: {', '.join(DTYPES)}"
      )
    patches = _patches(image_bhwc.astype(dtype), size, self.order)
    kernel_cf = kernel.reshape(-1, self.dim)
    return PreActivation(mix_channels(patches, kernel_cf, self.order, self.own_gradient), bias)


class DepthwiseConv(_Linear, kw_only=True):
  """Convolves each channel with its own kernel, see `depthwise_conv`."""

  kernel_size: int
  implementation: str | None
  mesh: Mesh | None
  order: str

  @nn.compact
  def __call__(self, x: jax.Array, grid: tuple[int, int]) -> PreActivation:
    """Returns a feature map of the shape and dtype of `x`, whose height and width are `grid`."""
    size, dim = self.kernel_size, x.shape[self.order.index("c")]
    kernel, bias = self._weights(size, size, 1, dim)
    y = depthwise_conv(
      x,
      kernel[:, :, 0].astype(x.dtype),
      implementation=self.implementation,
      order=self.order,
      grid=grid,
      mesh=None if self.is_initializing() else self.mesh,  # a single image cannot be sharded
    )
    return PreActivation(y, bias)


class PointwiseConv(_Linear, kw_only=True):
  """A 1x1 convolution."""

  order: str
  own_gradient: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> PreActivation:
    """Returns a feature map of the shape and dtype of `x`."""
    dim = x.shape[self.order.index("c")]
    kernel, bias = self._weights(1, 1, dim, dim)
    return PreActivation(mix_channels(x, kernel[0, 0], self.order, self.own_gradient), bias)


class Head(_Linear, kw_only=True):
  """Maps pooled features to logits."""

  num_classes: int

  @nn.compact
  def __call__(self, pooled_bf: jax.Array) -> jax.Array:
    """Returns float32 [b, num_classes]."""
    kernel, bias = self._weights(pooled_bf.shape[-1], self.num_classes)
    return pooled_bf @ kernel + bias[None]


class ActNorm(nn.Module, kw_only=True):
  """The activation, then BatchNorm as in PyTorch.

  Running statistics are float32, with the unbiased variance. Under `jit` with a sharded batch,
  statistics are computed over the global batch, or over its groups of `group_size` images, for any
  number of devices; `mesh` only affects how the groups are formed.
  """

  activation: str
  order: str
  group_size: int | None
  momentum: float
  epsilon: float
  mesh: Mesh | None
  param_dtype: jax.typing.DTypeLike = jnp.float32
  own_gradient: bool = True

  @nn.compact
  def __call__(self, before: PreActivation, train: bool) -> jax.Array:
    """Returns a feature map of the same shape and dtype; `train` is as in `ConvMixer.features`."""
    x, pre_bias = before
    axis = self.order.index("c")
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
    settings["own_gradient"] = self.own_gradient
    if self.is_initializing():  # the batch may be smaller than a group
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
    """The normalised feature map, and the mean and variance [groups, channels]."""
    batch_axis = self.order.index("b")
    batch = x.shape[batch_axis]
    if batch == 0:
      raise ValueError("train=True needs images for BatchNorm's statistics; this batch has none")
    size = self.group_size or batch
    if batch % size:
      raise ValueError(
        f"a batch of {batch} images cannot be split into groups of group_size={size}"
      )
    if size < batch and self._local_batch(x) % size:  # some groups span several devices
      groups = Groups(batch_axis, size)
      return act_norm(x, self.activation, groups=groups, **settings)

    def normalize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
      return act_norm(x, self.activation, **settings)

    shape = (*x.shape[:batch_axis], batch // size, size, *x.shape[batch_axis + 1 :])
    axes = (batch_axis, 0, 0)
    y, mean_gc, var_gc = jax.vmap(normalize, batch_axis, axes)(x.reshape(shape))
    return y.reshape(x.shape), mean_gc, var_gc

  def _local_batch(self, x: jax.Array) -> int:
    """Images per device; with explicit mesh axes, the type of `x` has its sharding."""
    shard_shape = jax.typeof(x).sharding.shard_shape(x.shape)
    return shard_shape[self.order.index("b")] // (self.mesh.size if self.mesh else 1)


def mix_channels(
  x: jax.Array, kernel_cf: jax.Array, order: str, own_gradient: bool = True
) -> jax.Array:
  """A 1x1 convolution without bias: the same matrix product at every position.

  The result has the dtype of x. With the custom gradient, the kernel's gradient has the kernel's
  dtype, so that devices sum it in float32. `own_gradient=False` leaves all derivatives to JAX.
  """
  function = _mix_channels_with_gradient if own_gradient else _mix_channels
  return function(x, kernel_cf, order)


def _mix_channels(x: jax.Array, kernel_cf: jax.Array, order: str) -> jax.Array:
  # Use 2-D operands: with more axes, XLA's CPU backend transposes the gradients.
  channels, features = kernel_cf.shape
  kernel_cf = kernel_cf.astype(x.dtype)
  if order == "cbp":  # a 2-D operand would have to be moved to other tiles of a TPU's memory
    return store_by_image(jnp.einsum("cf,cbp->fbp", kernel_cf, x))
  if order == "cbhw":
    return (kernel_cf.T @ x.reshape(channels, -1)).reshape(features, *x.shape[1:])
  return (x.reshape(-1, channels) @ kernel_cf).reshape(*x.shape[:-1], features)


def _mix_channels_forward(x: jax.Array, kernel_cf: jax.Array, order: str) -> tuple[jax.Array, Any]:
  return _mix_channels(x, kernel_cf, order), (x, kernel_cf)


def _mix_channels_backward(order: str, kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel_cf = kept
  channels, features = kernel_cf.shape
  sum_in: dict[str, Any] = {
    "preferred_element_type": kernel_cf.dtype,
    "out_sharding": jax.typeof(kernel_cf).sharding,  # the batch may be sharded over explicit axes
  }
  if order == "cbp":
    kernel_grad = jnp.einsum("cbp,fbp->cf", x, grad, **sum_in)
  elif order == "cbhw":
    kernel_grad = jnp.matmul(grad.reshape(features, -1), x.reshape(channels, -1).T, **sum_in).T
  else:
    kernel_grad = jnp.matmul(x.reshape(-1, channels).T, grad.reshape(-1, features), **sum_in)
  return _mix_channels(grad, kernel_cf.T, order), kernel_grad


_mix_channels_with_gradient = gradients.own_gradient(
  _mix_channels, _mix_channels_forward, _mix_channels_backward, arrays=2
)


def _patches(image_bhwc: jax.Array, size: int, order: str) -> jax.Array:
  """Turns each patch into one position with size * size * c channels, patch rows outermost."""
  if image_bhwc.ndim != 4:
    raise ValueError(f"images must be [batch, height, width, channels], not {image_bhwc.shape}")
  b, h, w, c = image_bhwc.shape
  if h % size or w % size:
    raise ValueError(
      f"images of {h}x{w} pixels cannot be cut into patches of {size}x{size}: "
      f"height and width must be multiples of patch_size={size}"
    )
  # Split one axis at a time, so that JAX can infer the sharding on a mesh with explicit axes.
  x = image_bhwc.reshape(b, h // size, size, w, c).reshape(b, h // size, size, w // size, size, c)
  if order[0] == "c":
    x = x.transpose(2, 4, 5, 0, 1, 3).reshape(size * size * c, b, h // size, w // size)
    return reorder(x, "cbhw", order, (h // size, w // size))
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


def average_pool(x: jax.Array, *, order: str) -> jax.Array:
  """The mean over all positions of a feature map in any order of dimensions, float32 [b, f]."""
  pool, separate_pool = (functools.partial(f, order=order) for f in (_mean, _separate_mean))
  return lax.platform_dependent(x, cpu=separate_pool, default=pool)


def _mean(x: jax.Array, *, order: str) -> jax.Array:
  mean = x.astype(jnp.float32).mean([axis for axis, letter in enumerate(order) if letter in "hwp"])
  return mean if order.index("b") < order.index("c") else mean.T


# XLA:CPU would fuse the last product, the activation and the mean into one slow loop.
_separate_mean = not_inlined(_mean)
