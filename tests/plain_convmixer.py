"""The oracle: ConvMixer of Flax's own layers, left to autodiff and XLA's grouped convolution.

Its parameters have our names, so that both can be given the same ones. Flax's BatchNorm keeps the
biased variance; ours keeps PyTorch's unbiased one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class PlainActNorm(nn.Module):
  """The activation, then BatchNorm."""

  activation: str
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Same shape."""
    x = nn.gelu(x, approximate=False) if self.activation == "gelu" else nn.relu(x)
    norm = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)
    nn.share_scope(self, norm)
    return norm(x)


class PlainBlock(nn.Module):
  """One block."""

  kernel_size: int
  activation: str
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Same shape."""
    dim, k = x.shape[-1], (self.kernel_size,) * 2
    y = nn.Conv(dim, k, feature_group_count=dim, dtype=self.dtype, name="depthwise")(x)
    x = x + PlainActNorm(self.activation, self.dtype, name="depthwise_norm")(y, train)
    y = nn.Conv(dim, (1, 1), dtype=self.dtype, name="pointwise")(x)
    return PlainActNorm(self.activation, self.dtype, name="pointwise_norm")(y, train)


class PlainConvMixer(nn.Module):
  """The attributes and calls of `convmixer_jax.ConvMixer`."""

  dim: int
  depth: int
  kernel_size: int
  patch_size: int
  num_classes: int
  activation: str = "gelu"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits [b, num_classes]."""
    patch = (self.patch_size,) * 2
    x = nn.Conv(self.dim, patch, patch, "VALID", dtype=self.dtype, name="stem")(x)
    x = PlainActNorm(self.activation, self.dtype, name="stem_norm")(x, train)
    for i in range(self.depth):
      x = PlainBlock(self.kernel_size, self.activation, self.dtype, name=f"blocks_{i}")(x, train)
    pooled = x.astype(jnp.float32).mean((1, 2))
    return nn.Dense(self.num_classes, name="head")(pooled)
