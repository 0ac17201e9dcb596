"""The ConvMixer network, with PyTorch's initialisation and BatchNorm."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from convmixer_jax.act_norm import ACTIVATIONS, act_affine, act_norm
from convmixer_jax.depthwise import depthwise_conv, depthwise_conv_cbhw
from convmixer_jax.outline import outlined

# Where the model's dimensions lie between its layers: as in the images, or with
# the channels outermost.
LAYOUTS = ("bhwc", "cbhw")


class Weights(nn.Module):
  """A layer's kernel and bias, as PyTorch initialises both.

  That is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), where fan_in is the number of
  inputs to an output: the product of all axes of the kernel but the last.
  """

  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, *shape: int) -> tuple[jax.Array, jax.Array]:
    """The kernel, of this shape in `dtype`, and the bias, `shape[-1:]` in `param_dtype`."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel = self.param("kernel", init, shape, self.param_dtype)
    bias = self.param("bias", init, shape[-1:], self.param_dtype)
    return kernel.astype(self.dtype), bias


class ActNorm(nn.Module):
  """The bias of the layer before, the activation, then BatchNorm, as PyTorch does it.

  Statistics are kept in float32 with momentum 0.9 (PyTorch's 0.1), eps 1e-5
  and the unbiased variance. Under `jit` over a sharded batch they are those of
  the global batch, whatever the number of devices.
  """

  activation: str
  layout: str
  param_dtype: jax.typing.DTypeLike = jnp.float32
  momentum: float = 0.9

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
    if not train:
      vectors |= {"mean": mean_ra.value, "var": var_ra.value}
      return act_affine(x, self.activation, channel_axis=axis, **vectors)
    y, mean, var = act_norm(x, self.activation, channel_axis=axis, **vectors)
    if not self.is_initializing():
      count = x.size // dim
      unbiased = var * (count / max(count - 1, 1))
      mean_ra.value = self.momentum * mean_ra.value + (1 - self.momentum) * mean
      var_ra.value = self.momentum * var_ra.value + (1 - self.momentum) * unbiased
    return y


class Block(nn.Module):
  """Depthwise mixing of positions with a residual around it, then pointwise mixing of channels."""

  kernel_size: int
  activation: str
  layout: str
  depthwise: str | None = None
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps in `layout` and `dtype` -> the same."""
    k, dim = self.kernel_size, x.shape[self.layout.index("c")]
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    norm = functools.partial(ActNorm, self.activation, self.layout, self.param_dtype)

    kernel, bias = Weights(**types, name="depthwise")(k, k, 1, dim)
    convolve = depthwise_conv_cbhw if self.layout == "cbhw" else depthwise_conv
    y = convolve(x, kernel[:, :, 0], implementation=self.depthwise)
    x = x + norm(name="depthwise_norm")(y, bias, train)

    kernel, bias = Weights(**types, name="pointwise")(1, 1, dim, dim)
    return norm(name="pointwise_norm")(_mix_channels(x, kernel[0, 0], self.layout), bias, train)


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
    dtype: type of the computation; activations, statistics, the pooling and the
      head are computed in float32.
    param_dtype: type of the parameters.
    layout: "bhwc", or "cbhw", which is faster on CPU unless `depthwise` is
      "native": the order of dimensions between the layers. Arguments, results
      and parameters are the same.
    depthwise: the `implementation` of `depthwise.depthwise_conv`.
  """

  dim: int
  depth: int
  kernel_size: int = 9
  patch_size: int = 7
  num_classes: int = 1000
  activation: str = "gelu"
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  layout: str = "bhwc"
  depthwise: str | None = None

  def setup(self) -> None:
    """Names the layers; raises ValueError for an attribute that is not allowed."""
    for name, value, allowed in (
      ("activation", self.activation, ACTIVATIONS),
      ("layout", self.layout, LAYOUTS),
    ):
      if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    self.stem = Weights(**types)
    self.stem_norm = ActNorm(self.activation, self.layout, self.param_dtype)
    block = (self.kernel_size, self.activation, self.layout, self.depthwise)
    self.blocks = [Block(*block, **types) for _ in range(self.depth)]
    if self.num_classes:
      self.head = Weights(param_dtype=self.param_dtype)

  def features(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """The map [b, h / patch_size, w / patch_size, dim] in `dtype`, before the pooling.

    Args:
      image_bhwc: normalised images, any float type.
      train: use the batch's statistics and update the running ones, for which
        the collection `batch_stats` has to be mutable.

    Raises:
      ValueError: if `patch_size` does not divide the images' height and width.
    """
    patches = _patches(image_bhwc.astype(self.dtype), self.patch_size, self.layout)
    kernel, bias = self.stem(self.patch_size, self.patch_size, image_bhwc.shape[-1], self.dim)
    x = _mix_channels(patches, kernel.reshape(-1, self.dim), self.layout)
    x = self.stem_norm(x, bias, train)
    for block in self.blocks:
      x = block(x, train)
    return x.transpose([self.layout.index(letter) for letter in "bhwc"])

  def __call__(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """Float32 logits [b, num_classes], or pooled features [b, dim] for `num_classes=0`.

    The arguments and errors are those of `features`.
    """
    pooled_bf = _pool(self.features(image_bhwc, train))
    if not self.num_classes:
      return pooled_bf
    kernel, bias = self.head(self.dim, self.num_classes)
    return pooled_bf @ kernel + bias[None]


def _patches(image_bhwc: jax.Array, size: int, layout: str) -> jax.Array:
  """Each patch as one position with size * size * c channels, rows of the patch outermost."""
  if image_bhwc.ndim != 4:
    raise ValueError(f"images have to be [batch, height, width, channels], not {image_bhwc.shape}")
  b, h, w, c = image_bhwc.shape
  if h % size or w % size:
    raise ValueError(
      f"images of {h}x{w} pixels cannot be cut into patches of {size}x{size}: "
      f"height and width have to be multiples of patch_size={size}"
    )
  x = image_bhwc.reshape(b, h // size, size, w // size, size, c)
  if layout == "cbhw":
    return x.transpose(2, 4, 5, 0, 1, 3).reshape(-1, b, h // size, w // size)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, -1)


# XLA:CPU would fuse the last product, the activation and the mean into one slow loop.
@outlined
def _pool(x_bhwf: jax.Array) -> jax.Array:
  """The float32 mean over the positions."""
  return x_bhwf.astype(jnp.float32).mean((1, 2))


def _mix_channels(x: jax.Array, kernel_cf: jax.Array, layout: str) -> jax.Array:
  """The same matrix product at every position: a 1x1 convolution without its bias."""
  # Two axes each: of products with more, XLA's CPU backend transposes the gradients.
  channels, features = kernel_cf.shape
  if layout == "cbhw":
    return (kernel_cf.T @ x.reshape(channels, -1)).reshape(features, *x.shape[1:])
  return (x.reshape(-1, channels) @ kernel_cf).reshape(*x.shape[:-1], features)
