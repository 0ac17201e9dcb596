"""The ConvMixer network, with PyTorch's initialisation and BatchNorm."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from convmixer_jax import depthwise

# PyTorch's GELU is the exact one; Flax's default is the tanh approximation.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "relu": jax.nn.relu,
}


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for kernels and biases."""
  bound = 1 / math.sqrt(fan_in)

  def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Linear(nn.Module):
  """A matrix product over the last axis, [..., c] -> [..., features], and a bias.

  The kernel is stored with `kernel_window` in front of its two axes, so that
  the parameters are those of the convolution whose patches are multiplied.
  """

  features: int
  kernel_window: tuple[int, ...] = ()
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., c] -> [..., features] in `dtype`."""
    fan_in = x.shape[-1]
    shape = (*self.kernel_window, fan_in // math.prod(self.kernel_window), self.features)
    kernel = self.param("kernel", torch_uniform(fan_in), shape, self.param_dtype)
    bias = self.param("bias", torch_uniform(fan_in), (self.features,), self.param_dtype)
    kernel = kernel.reshape(fan_in, self.features)
    y = x.astype(self.dtype) @ kernel.astype(self.dtype)
    return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class DepthwiseConv(nn.Module):
  """A k x k convolution of each channel with its own kernel, SAME padding, and a bias."""

  kernel_size: int
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_bhwf: jax.Array) -> jax.Array:
    """[b, h, w, f] -> [b, h, w, f] in `dtype`."""
    k, dim = self.kernel_size, x_bhwf.shape[-1]
    kernel = self.param("kernel", torch_uniform(k * k), (k, k, 1, dim), self.param_dtype)
    bias = self.param("bias", torch_uniform(k * k), (dim,), self.param_dtype)
    kernel_hwf = kernel.reshape(k, k, dim).astype(self.dtype)
    y_bhwf = depthwise.depthwise_conv(x_bhwf.astype(self.dtype), kernel_hwf)
    return y_bhwf + jnp.broadcast_to(bias.astype(self.dtype), y_bhwf.shape)


class ActivationBatchNorm(nn.Module):
  """The activation, then BatchNorm over all axes but the last, as PyTorch does it.

  Statistics are kept in float32 with momentum 0.9 (PyTorch's 0.1), eps 1e-5
  and the unbiased variance. Under `jit` over a sharded batch they are those of
  the global batch, whatever the number of devices.
  """

  activation: str
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[..., f] -> [..., f] in `dtype`; `train` is as in `ConvMixer.features`."""
    dim = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (dim,), self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, (dim,), self.param_dtype)
    mean_ra = self.variable("batch_stats", "mean", jnp.zeros, (dim,), jnp.float32)
    var_ra = self.variable("batch_stats", "var", jnp.ones, (dim,), jnp.float32)

    x = ACTIVATIONS[self.activation](x).astype(jnp.float32)
    mean, var = mean_ra.value, var_ra.value
    if train:
      axes = tuple(range(x.ndim - 1))
      mean, var = x.mean(axes), x.var(axes)
      if not self.is_initializing():
        count = x.size // dim
        unbiased = var * (count / max(count - 1, 1))
        mean_ra.value = self.momentum * mean_ra.value + (1 - self.momentum) * mean
        var_ra.value = self.momentum * var_ra.value + (1 - self.momentum) * unbiased
    gain = scale * jax.lax.rsqrt(var + self.epsilon)
    offset = bias - mean * gain
    y = x * jnp.broadcast_to(gain, x.shape) + jnp.broadcast_to(offset, x.shape)
    return y.astype(self.dtype)


class Block(nn.Module):
  """Depthwise mixing of positions with a residual around it, then pointwise mixing of channels."""

  kernel_size: int
  activation: str
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_bhwf: jax.Array, train: bool) -> jax.Array:
    """[b, h, w, f] -> [b, h, w, f] in `dtype`."""
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    y = DepthwiseConv(self.kernel_size, **types, name="depthwise")(x_bhwf)
    x = x_bhwf + ActivationBatchNorm(self.activation, **types, name="depthwise_norm")(y, train)
    y = Linear(x.shape[-1], kernel_window=(1, 1), **types, name="pointwise")(x)
    return ActivationBatchNorm(self.activation, **types, name="pointwise_norm")(y, train)


class ConvMixer(nn.Module):
  """ConvMixer-dim/depth (paper, section 2; the authors' `convmixer.py`).

  Attributes:
    dim: width of the model, constant from the patches to the head.
    depth: number of blocks.
    kernel_size: side of the depthwise kernels, odd or even.
    patch_size: side of the square patches, and their stride; it has to divide
      both sides of the images, whose size and channels are otherwise free.
    num_classes: size of the logits; 0 leaves the head out and gives the pooled
      features.
    activation: "gelu" (exact) or "relu" (the authors' 768/32).
    dtype: type of the computation; BatchNorm's statistics, the pooling and the
      head are computed in float32.
    param_dtype: type of the parameters.
  """

  dim: int
  depth: int
  kernel_size: int = 9
  patch_size: int = 7
  num_classes: int = 1000
  activation: str = "gelu"
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers; raises ValueError for an unknown activation."""
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"activation is {self.activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    window = (self.patch_size, self.patch_size)
    self.stem = Linear(self.dim, kernel_window=window, **types)
    self.stem_norm = ActivationBatchNorm(self.activation, **types)
    self.blocks = [Block(self.kernel_size, self.activation, **types) for _ in range(self.depth)]
    if self.num_classes:
      self.head = Linear(self.num_classes, param_dtype=self.param_dtype)

  def features(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """The map [b, h / patch_size, w / patch_size, dim] in `dtype`, before the pooling.

    Args:
      image_bhwc: normalised images, any float type.
      train: use the batch's statistics and update the running ones, for which
        the collection `batch_stats` has to be mutable.

    Raises:
      ValueError: if `patch_size` does not divide the images' height and width.
    """
    x = self.stem_norm(self.stem(_patches(image_bhwc, self.patch_size)), train)
    for block in self.blocks:
      x = block(x, train)
    return x

  def __call__(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """Float32 logits [b, num_classes], or pooled features [b, dim] for `num_classes=0`.

    The arguments and errors are those of `features`.
    """
    pooled_bf = self.features(image_bhwc, train).astype(jnp.float32).mean((1, 2))
    return self.head(pooled_bf) if self.num_classes else pooled_bf


def _patches(image_bhwc: jax.Array, size: int) -> jax.Array:
  """[b, h, w, c] -> [b, h / size, w / size, size * size * c], rows of a patch outermost."""
  if image_bhwc.ndim != 4:
    raise ValueError(f"images have to be [batch, height, width, channels], not {image_bhwc.shape}")
  b, h, w, c = image_bhwc.shape
  if h % size or w % size:
    raise ValueError(
      f"images of {h}x{w} pixels cannot be cut into patches of {size}x{size}: "
      f"height and width have to be multiples of patch_size={size}"
    )
  x = image_bhwc.reshape(b, h // size, size, w // size, size, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)
