"""The ConvMixer network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from convmixer_jax import depthwise
from convmixer_jax.model import attributes, scan
from convmixer_jax.model.layers import (
  ActNorm,
  DepthwiseConv,
  Head,
  PatchEmbedding,
  PointwiseConv,
  average_pool,
)


class Block(nn.Module):
  """Depthwise convolution with a residual connection, then pointwise; each with its `norm`."""

  depthwise_conv: Callable[..., DepthwiseConv]
  pointwise_conv: Callable[..., PointwiseConv]
  norm: Callable[..., ActNorm]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, grid: tuple[int, int]) -> jax.Array:
    """Maps a feature map of the height and width `grid` to one of the same shape and dtype."""
    x = x + self.norm(name="depthwise_norm")(self.depthwise_conv(name="depthwise")(x, grid), train)
    return self.norm(name="pointwise_norm")(self.pointwise_conv(name="pointwise")(x), train)


class ConvMixer(nn.Module):
  """ConvMixer-dim/depth (paper, section 2; the authors' `convmixer.py`).

  Attributes:
    dim: width of the model, constant from the patch embedding to the head.
    depth: number of blocks.
    kernel_size: side of the depthwise kernels, odd or even.
    patch_size: side and stride of the square patches. It must divide the height and width of the
      images, which may otherwise have any size and number of channels.
    num_classes: size of the logits; 0 omits the head and returns the pooled features.
    activation: "gelu" (exact), "gelu_tanh" (its approximation) or "relu" (the authors' 768/32).
    dtype: compute dtype: float32, bfloat16, or None for the promoted dtype of the images and
      parameters. Activations, statistics, pooling and the head are computed in float32.
    param_dtype: dtype of the parameters.
    group_size: in training, compute BatchNorm statistics separately for each group of this many
      consecutive images, like the per-GPU batches of PyTorch. The running statistics are averaged
      over the groups. None for the whole global batch.
    norm_momentum: weight of the old running statistics, i.e. 1 - PyTorch's momentum.
    norm_epsilon: added to BatchNorm's variance.
    dropout: dropout rate of the pooled features in training; if above 0, `apply` needs the RNG
      "dropout".
    initializer: "torch" or "glorot", see `layers.INITIALIZERS`.
    depthwise: the `implementation` of `depthwise.depthwise_conv`. "xla" leaves all derivatives of
      the model to JAX and so supports forward mode. All others, including None, use custom
      gradients, which are faster.
    scan: loop over the blocks, so that the body is compiled once rather than for each block. The
      variables are the same.
    remat: what to recompute for the gradient, which takes less memory and more time. "none";
      "activations": activations and normalizations, so that two feature maps of a block are stored;
      "blocks": everything, in a loop over the blocks, of each of which the input is stored.
    mesh: devices to shard the batch over, along all mesh axes. None for a single device, or where
      the compiler can shard the depthwise convolutions by itself.
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
  depthwise: str | None = None
  scan: bool = False
  remat: str = "none"
  mesh: Mesh | None = None

  def setup(self) -> None:
    """Creates the layers; raises ValueError for an invalid attribute."""
    attributes.check(self)
    order, own_gradient = depthwise.order_of(self.depthwise), self.depthwise != "xla"
    maps: dict[str, Any] = {"order": order, "own_gradient": own_gradient}
    weights: dict[str, Any] = {"initializer": self.initializer, "param_dtype": self.param_dtype}
    norm = partial(
      ActNorm,
      activation=self.activation,
      group_size=self.group_size,
      momentum=self.norm_momentum,
      epsilon=self.norm_epsilon,
      mesh=self.mesh,
      param_dtype=self.param_dtype,
      **maps,
    )
    depthwise_conv = partial(
      DepthwiseConv,
      kernel_size=self.kernel_size,
      implementation=self.depthwise,
      mesh=self.mesh,
      order=order,
      **weights,
    )
    pointwise_conv = partial(PointwiseConv, **maps, **weights)
    patches: dict[str, Any] = {"dim": self.dim, "patch_size": self.patch_size, "dtype": self.dtype}
    self.stem = PatchEmbedding(**patches, **maps, **weights)
    self.stem_norm = norm()
    self.blocks = [Block(depthwise_conv, pointwise_conv, norm) for _ in range(self.depth)]
    if self.num_classes:
      self.head_dropout = nn.Dropout(self.dropout)
      self.head = Head(num_classes=self.num_classes, **weights)

  def features(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """The feature map before pooling: [b, h / patch_size, w / patch_size, dim] in `dtype`.

    Args:
      image_bhwc: normalised images, any float dtype.
      train: use batch statistics and update the running statistics; the collection `batch_stats`
        must be mutable.

    Raises:
      ValueError: if `patch_size` does not divide the images' height and width, an attribute is
        invalid, or a training batch is empty.
    """
    x, order = self._feature_map(image_bhwc, train), depthwise.order_of(self.depthwise)
    return depthwise.orders.reorder(x, order, "bhwc", self._grid(image_bhwc))

  def pooled_features(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """The mean of `features` over all positions, float32 [b, dim]; arguments are the same."""
    x, order = self._feature_map(image_bhwc, train), depthwise.order_of(self.depthwise)
    return average_pool(x, order=order)

  def classify(self, pooled_bf: jax.Array, train: bool = False) -> jax.Array:
    """The result of `__call__`, given that of `pooled_features`; `train` enables dropout."""
    if not self.num_classes:
      return pooled_bf
    return self.head(self.head_dropout(pooled_bf, deterministic=not train))

  def __call__(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """Float32 logits [b, num_classes], or pooled features [b, dim] if `num_classes` is 0.

    Arguments and errors are as in `features`.
    """
    return self.classify(self.pooled_features(image_bhwc, train), train)

  def _feature_map(self, image_bhwc: jax.Array, train: bool) -> jax.Array:
    """The last feature map, in the order of dimensions of the depthwise convolution."""
    x = self.stem_norm(self.stem(image_bhwc), train)
    grid = self._grid(image_bhwc)
    if (self.scan or self.remat != "none") and not self.is_initializing():
      return scan.over_blocks(self, x, train, grid)
    for block in self.blocks:
      x = block(x, train, grid)
    return x

  def _grid(self, image_bhwc: jax.Array) -> tuple[int, int]:
    return image_bhwc.shape[1] // self.patch_size, image_bhwc.shape[2] // self.patch_size
