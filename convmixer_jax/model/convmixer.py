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
  """Depthwise mixing of positions with a residual around it, then pointwise mixing of channels."""

  depthwise_conv: Callable[..., DepthwiseConv]
  pointwise_conv: Callable[..., PointwiseConv]
  norm: Callable[..., ActNorm]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Feature maps -> the same."""
    x = x + self.norm(name="depthwise_norm")(self.depthwise_conv(name="depthwise")(x), train)
    return self.norm(name="pointwise_norm")(self.pointwise_conv(name="pointwise")(x), train)


class ConvMixer(nn.Module):
  """ConvMixer-dim/depth (paper, section 2; the authors' `convmixer.py`).

  Attributes:
    dim: width of the model, constant from the patches to the head.
    depth: number of blocks.
    kernel_size: side of the depthwise kernels, odd or even.
    patch_size: side of the square patches, and their stride; it has to divide both sides of the
      images, whose size and channels are otherwise free.
    num_classes: size of the logits; 0 leaves the head out and gives the pooled features.
    activation: "gelu" (exact), "gelu_tanh" (its approximation) or "relu" (the authors' 768/32).
    dtype: of the computation, float32, bfloat16, or None for what the images and parameters promote
      to; activations, statistics, the pooling and the head are computed in float32.
    param_dtype: of the parameters.
    group_size: in training, so many images in a row have their own BatchNorm statistics, as the
      batch of one GPU has in PyTorch, and the running ones are averaged over the groups; None for
      the whole global batch.
    norm_momentum: weight of the running statistics' old values, 1 - PyTorch's.
    norm_epsilon: added to BatchNorm's variance.
    dropout: share of the pooled features that are 0 in training, which then needs the random
      numbers "dropout".
    initializer: "torch" or "glorot", see `layers.INITIALIZERS`.
    depthwise: the `implementation` of `depthwise.depthwise_conv`. "xla" leaves all derivatives of
      the model to JAX, so that forward mode works as well; the others, None among them, have
      gradients of our own, which are faster.
    scan: compile the body of a loop over the blocks instead of each of them; the variables are the
      same.
    remat: in such a loop, keep only what goes into each block, and compute the rest again for the
      gradient, which takes less memory and more time.
    mesh: the devices over all of whose axes the batch is sharded; None where there is one, or where
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
  depthwise: str | None = None
  scan: bool = False
  remat: bool = False
  mesh: Mesh | None = None

  def setup(self) -> None:
    """Names the layers; raises ValueError for an attribute that is not allowed."""
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
    """The feature map [b, h / patch_size, w / patch_size, dim] in `dtype`, before the pooling.

    Args:
      image_bhwc: normalised images, any float type.
      train: use the batch's statistics and update the running ones, for which the collection
        `batch_stats` has to be mutable.

    Raises:
      ValueError: if `patch_size` does not divide the images' height and width, an attribute is not
        allowed, or there are no images in training.
    """
    x = self.stem_norm(self.stem(image_bhwc), train)
    if (self.scan or self.remat) and not self.is_initializing():
      x = scan.over_blocks(self, x, train)
    else:
      for block in self.blocks:
        x = block(x, train)
    return x.transpose([depthwise.order_of(self.depthwise).index(letter) for letter in "bhwc"])

  def classify(self, feature_bhwf: jax.Array, train: bool = False) -> jax.Array:
    """What `__call__` gives, from the map of `features`; `train` is for the dropout alone."""
    pooled_bf = average_pool(feature_bhwf)
    if not self.num_classes:
      return pooled_bf
    return self.head(self.head_dropout(pooled_bf, deterministic=not train))

  def __call__(self, image_bhwc: jax.Array, train: bool = False) -> jax.Array:
    """Float32 logits [b, num_classes], or pooled features [b, dim] for `num_classes=0`.

    The arguments and errors are those of `features`.
    """
    return self.classify(self.features(image_bhwc, train), train)
