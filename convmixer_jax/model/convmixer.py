"""The ConvMixer network."""

from collections.abc import Callable
import functools
import math
import numbers
from typing import Any

import flax.linen as nn
from flax.linen.dtypes import canonicalize_dtype
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from convmixer_jax.depthwise import IMPLEMENTATIONS, depthwise_conv, depthwise_conv_cbhw
from convmixer_jax.depthwise.no_inline import outlined
from convmixer_jax.model import scan as blocks
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.layers import INITIALIZERS, ActNorm, Weights, mix_channels

# Where the model's dimensions lie between its layers: as in the images, or with
# the channels outermost.
LAYOUTS = ("bhwc", "cbhw")
DTYPES = ("float32", "bfloat16")


def default_layout(platform: str, depthwise: str | None = None) -> str:
  """The layout that is fastest on "cpu" or another platform with this `depthwise`."""
  return "cbhw" if platform == "cpu" and depthwise != "native" else "bhwc"


class Block(nn.Module):
  """Depthwise mixing of positions with a residual around it, then pointwise mixing of channels.

  Attributes:
    kernel_size, layout, depthwise, mesh: as in `ConvMixer`.
    weights, norm: make a layer's `Weights` and its `ActNorm`.
  """

  kernel_size: int
  layout: str
  depthwise: str | None
  mesh: Mesh | None
  weights: Callable[..., Weights]
  norm: Callable[..., ActNorm]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps in `layout` -> the same."""
    k, dim = self.kernel_size, x.shape[self.layout.index("c")]

    kernel, bias = self.weights(name="depthwise")(k, k, 1, dim)
    y = self._mix_positions(x, kernel[:, :, 0])
    x = x + self.norm(name="depthwise_norm")(y, bias, train)

    kernel, bias = self.weights(name="pointwise")(1, 1, dim, dim)
    y = mix_channels(x, kernel[0, 0], self.layout, self.depthwise != "xla")
    return self.norm(name="pointwise_norm")(y, bias, train)

  def _mix_positions(self, x: jax.Array, kernel_hwc: jax.Array) -> jax.Array:
    """The depthwise convolution, on each device of its own images."""

    def convolve(x: jax.Array, kernel_hwc: jax.Array) -> jax.Array:
      function = depthwise_conv_cbhw if self.layout == "cbhw" else depthwise_conv
      return function(x, kernel_hwc.astype(x.dtype), implementation=self.depthwise)

    if self.mesh is not None and not self.is_initializing():
      # The compiler cannot cut the kernels that are not its own, and would gather the batch.
      maps = PartitionSpec(*[None] * self.layout.index("b"), self.mesh.axis_names)
      convolve = jax.shard_map(
        convolve, mesh=self.mesh, in_specs=(maps, PartitionSpec()), out_specs=maps
      )
    return convolve(x, kernel_hwc)


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any, low: int) -> bool:
  return _is_number(value) and isinstance(value, numbers.Integral) and int(value) >= low


def _is_dtype(value: Any) -> bool:
  return value is None or any(value == jnp.dtype(name) for name in DTYPES)


# Attributes of `ConvMixer`, a test of their values, and what passes it.
_ALLOWED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
  ("dim patch_size kernel_size", lambda v: _is_integer(v, 1), "integers from 1"),
  ("depth num_classes", lambda v: _is_integer(v, 0), "integers from 0"),
  ("group_size", lambda v: v is None or _is_integer(v, 1), "None, integers from 1"),
  ("dropout norm_momentum", lambda v: _is_number(v) and 0 <= v < 1, "numbers from 0 to below 1"),
  ("norm_epsilon", lambda v: _is_number(v) and 0 < v < math.inf, "numbers above 0"),
  ("dtype", _is_dtype, f"None, {', '.join(DTYPES)}"),
  ("activation", lambda v: v in ACTIVATIONS, ", ".join(ACTIVATIONS)),
  ("initializer", lambda v: v in INITIALIZERS, ", ".join(INITIALIZERS)),
  ("layout", lambda v: v in LAYOUTS, ", ".join(LAYOUTS)),
  ("depthwise", lambda v: v in IMPLEMENTATIONS, ", ".join(map(str, IMPLEMENTATIONS))),
)


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
    activation: "gelu" (exact), "gelu_tanh" (its approximation) or "relu" (the
      authors' 768/32).
    dtype: type of the computation, float32, bfloat16, or None for what the images
      and parameters promote to; activations, statistics, the pooling and the head
      are computed in float32.
    param_dtype: type of the parameters.
    group_size: in training, so many images in a row have their own BatchNorm
      statistics, as the batch of one GPU has in PyTorch, and the running ones
      are averaged over the groups; None for the whole global batch.
    norm_momentum: weight of the running statistics' old values, 1 - PyTorch's.
    norm_epsilon: added to BatchNorm's variance.
    dropout: share of the pooled features that are 0 in training, which then
      needs the random numbers "dropout".
    initializer: "torch" or "glorot", see `Weights`.
    layout: "bhwc", or "cbhw", which is faster on CPU unless `depthwise` is
      "native": the order of dimensions between the layers. Arguments, results
      and parameters are the same.
    depthwise: the `implementation` of `depthwise.depthwise_conv`. "xla" leaves all
      derivatives of the model to JAX, so that forward mode works as well; the
      others, None among them, have gradients of our own, which are faster.
    scan: compile the body of a loop over the blocks instead of each of them; the
      variables are the same.
    remat: in such a loop, keep only what goes into each block, and compute the
      rest again for the gradient, which takes less memory and more time.
    mesh: of several devices, over all of whose axes the batch is cut; None where
      the compiler may place the depthwise convolutions.
  """

  dim: int
  depth: int
  kernel_size: int = 9
  patch_size: int = 7
  num_classes: int = 1000
  activation: str = "gelu"
  dtype: jax.typing.DTypeLike | None = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  group_size: int | None = None
  norm_momentum: float = 0.9
  norm_epsilon: float = 1e-5
  dropout: float = 0.0
  initializer: str = "torch"
  layout: str = "bhwc"
  depthwise: str | None = None
  scan: bool = False
  remat: bool = False
  mesh: Mesh | None = None

  def setup(self) -> None:
    """Names the layers; raises ValueError for an attribute that is not allowed."""
    for names, is_allowed, allowed in _ALLOWED:
      for name in names.split():
        value = getattr(self, name)
        if not is_allowed(value):
          raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
    weights = functools.partial(Weights, self.initializer, self.param_dtype)
    norm = functools.partial(
      ActNorm,
      self.activation,
      self.layout,
      self.group_size,
      self.norm_momentum,
      self.norm_epsilon,
      1 if self.mesh is None else self.mesh.size,
      self.param_dtype,
      self.depthwise != "xla",
    )
    self.stem = weights()
    self.stem_norm = norm()
    block = (self.kernel_size, self.layout, self.depthwise, self.mesh, weights, norm)
    self.blocks = [Block(*block) for _ in range(self.depth)]
    if self.num_classes:
      self.head_dropout = nn.Dropout(self.dropout)
      self.head = weights()

  def features(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """The map [b, h / patch_size, w / patch_size, dim] in `dtype`, before the pooling.

    Args:
      image_bhwc: normalised images, any float type.
      train: use the batch's statistics and update the running ones, for which
        the collection `batch_stats` has to be mutable.

    Raises:
      ValueError: if `patch_size` does not divide the images' height and width, an attribute is not
        allowed, or there are no images in training.
    """
    kernel, bias = self.stem(self.patch_size, self.patch_size, image_bhwc.shape[-1], self.dim)
    dtype = canonicalize_dtype(image_bhwc, kernel, bias, dtype=self.dtype)
    if not _is_dtype(dtype):
      raise ValueError(
        f"dtype is None, which for {image_bhwc.dtype} images and {kernel.dtype} parameters means "
        f"{jnp.dtype(dtype)}; allowed: {', '.join(DTYPES)}"
      )
    patches = _patches(image_bhwc.astype(dtype), self.patch_size, self.layout)
    kernel_cf = kernel.reshape(-1, self.dim)
    x = mix_channels(patches, kernel_cf, self.layout, self.depthwise != "xla")
    x = self.stem_norm(x, bias, train)
    if (self.scan or self.remat) and self.depth and not self.is_initializing():
      x = self._scan_blocks(x, train)
    else:
      for block in self.blocks:
        x = block(x, train)
    return x.transpose([self.layout.index(letter) for letter in "bhwc"])

  def _scan_blocks(self, x: jax.Array, train: bool) -> jax.Array:
    """All blocks, one after the other, their variables stacked."""
    block, names = (
      self.blocks[0].clone(parent=None, name=None),
      [f"blocks_{i}" for i in range(self.depth)],
    )

    def apply(x: jax.Array, params: Any, stats: Any) -> tuple[jax.Array, Any]:
      y, updated = block.apply(
        {"params": params, "batch_stats": stats}, x, train, mutable=["batch_stats"]
      )
      return y, updated["batch_stats"]

    params, stats = (
      jax.tree.map(lambda *arrays: jnp.stack(arrays), *[self.variables[kind][n] for n in names])
      for kind in ("params", "batch_stats")
    )
    scan = blocks.scan
    if self.remat:
      scan = functools.partial(blocks.scan_with_remat, with_gradient=self.depthwise != "xla")
    x, updated = scan(apply, x, params, stats)
    if train:
      for i, name in enumerate(names):
        self.put_variable("batch_stats", name, jax.tree.map(lambda array, i=i: array[i], updated))
    return x

  def __call__(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """Float32 logits [b, num_classes], or pooled features [b, dim] for `num_classes=0`.

    The arguments and errors are those of `features`.
    """
    return self.classify(self.features(image_bhwc, train), train)

  def classify(self, feature_bhwf: jax.Array, train: bool = False) -> jax.Array:
    """What `__call__` gives, from the map of `features`; `train` is for the dropout alone."""
    pooled_bf = _pool(feature_bhwf)
    if not self.num_classes:
      return pooled_bf
    pooled_bf = self.head_dropout(pooled_bf, deterministic=not train)
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
  # One axis after the other: so JAX can tell the sharding of the result on a mesh of explicit axes.
  x = image_bhwc.reshape(b, h // size, size, w, c).reshape(b, h // size, size, w // size, size, c)
  if layout == "cbhw":
    return x.transpose(2, 4, 5, 0, 1, 3).reshape(size * size * c, b, h // size, w // size)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


# XLA:CPU would fuse the last product, the activation and the mean into one slow loop.
@outlined
def _pool(x_bhwf: jax.Array) -> jax.Array:
  """The float32 mean over the positions."""
  return x_bhwf.astype(jnp.float32).mean((1, 2))
