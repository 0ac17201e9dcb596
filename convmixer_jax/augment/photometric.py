"""RandAugment's photometric ops on a uint8 image, with Pillow's rounding.

Dimension letters: h height, w width, c channels, v level (0..255).
"""

from collections.abc import Callable, Sequence

import jax
from jax import Array
import jax.numpy as jnp

from convmixer_jax.augment.op import Op
from convmixer_jax.augment.rounding import product


def apply(image_hwc: Array, op: Array, argument: Array, ops: Sequence[Op] = tuple(Op)) -> Array:
  """Applies a photometric op; other ops leave the image unchanged.

  Results are identical to Pillow's ImageOps and ImageEnhance. Posterize with 0 bits gives a black
  image, as in Pillow before version 13, which rejects it.

  Args:
    image_hwc: uint8, with one channel (grey; Color has no effect) or three (RGB).
    op: int32, a number of `Op`.
    argument: float32, in the units named in `Op`.
    ops: those that `op` may be; the program has no code for others.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: if the dtype, number of channels or number of dimensions is wrong.
  """
  if image_hwc.ndim != 3 or image_hwc.dtype != jnp.uint8 or image_hwc.shape[2] not in (1, 3):
    raise ValueError(
      "image_hwc must be uint8 of shape (height, width, 1 or 3), "
      f"got {image_hwc.dtype} {image_hwc.shape}"
    )
  functions = {
    Op.AUTO_CONTRAST: _auto_contrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: lambda level, _: 255 - level,
    Op.POSTERIZE: lambda level, bits: level & (256 - (1 << (8 - bits.astype(jnp.int32)))),
    Op.SOLARIZE: lambda level, threshold: jnp.where(level < threshold, level, 255 - level),
    Op.SOLARIZE_ADD: _solarize_add,
    Op.BRIGHTNESS: lambda level, factor: _blend(jnp.zeros_like(level), level, factor),
    Op.CONTRAST: lambda level, factor: _blend(_mean(_grey(level)), level, factor),
    Op.COLOR: lambda level, factor: _blend(_grey(level), level, factor),
    Op.SHARPNESS: lambda level, factor: _blend(_smooth(level), level, factor),
  }

  def branch(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda image, argument: function(image.astype(jnp.int32), argument).astype(jnp.uint8)

  branches = [lambda image, _: image]
  number = jnp.zeros((), jnp.int32)
  for one in ops:
    if one in functions:
      number = jnp.where(op == one, len(branches), number)
      branches.append(branch(functions[one]))
  return jax.lax.switch(number, branches, image_hwc, argument)


def _auto_contrast(level_hwc: Array, argument: Array) -> Array:
  """ImageOps.autocontrast without cutoff: maps the darkest level to 0, the brightest to 255.

  Uses float64 because Pillow truncates float64 values to whole levels, and some fall just short of
  one. The maximum with 0 changes no value; see `product` for why it is needed.
  """
  del argument
  low, high = level_hwc.min((0, 1))[None], level_hwc.max((0, 1))[None]
  level = jnp.arange(256)[:, None]
  with jax.enable_x64(True):
    scale = 255 / jnp.maximum(high - low, 1).astype(jnp.float64)
    scaled, offset = (jnp.maximum(a.astype(jnp.float64) * scale, 0) for a in (level, low))
    stretched = jnp.clip(scaled - offset, 0, 255).astype(jnp.int32)
  return _look_up(jnp.where(high > low, stretched, level), level_hwc)


def _equalize(level_hwc: Array, argument: Array) -> Array:
  """ImageOps.equalize: the number of darker pixels, in steps of 1/255 of all but the brightest."""
  del argument
  level = jnp.arange(256)[:, None]
  count_vc = _histogram(level_hwc)
  brightest = jnp.where(level == level_hwc.max((0, 1))[None], count_vc, 0).sum(0, keepdims=True)
  step = (count_vc.sum(0, keepdims=True) - brightest) // 255
  darker_vc = jnp.cumsum(count_vc, axis=0) - count_vc
  equalized = jnp.minimum((step // 2 + darker_vc) // jnp.maximum(step, 1), 255)
  return _look_up(jnp.where(step > 0, equalized, level), level_hwc)


def _histogram(level_hwc: Array) -> Array:
  """The count of each level, (v, c), as a product of matrices; without a scatter."""
  digit = jnp.arange(16)[None, None, None]
  high, low = (
    (of[..., None] == digit).astype(jnp.float32) for of in (level_hwc >> 4, level_hwc & 15)
  )
  count = jnp.einsum("hwci,hwcj->ijc", high, low)
  return count.reshape(256, -1).astype(jnp.int32)


def _look_up(table_vc: Array, level_hwc: Array) -> Array:
  """The entry of each level in its channel's table, by comparisons with all levels; no gather."""
  table = table_vc.astype(jnp.uint8).reshape(16, 16, 1, 1, -1)
  level_hwc = level_hwc.astype(jnp.uint8)

  def some(found: Array, of: tuple[Array, Array]) -> tuple[Array, None]:
    first, entries = of
    for i in range(16):
      found = jnp.where(level_hwc == first + i, entries[i], found)
    return found, None

  return jax.lax.scan(some, level_hwc, (jnp.arange(0, 256, 16, jnp.uint8), table))[0]


def _solarize_add(level_hwc: Array, argument: Array) -> Array:
  added = jnp.minimum(level_hwc + argument.astype(jnp.int32), 255)
  return jnp.where(level_hwc < 128, added, level_hwc)


def _mean(grey_hw1: Array) -> Array:
  """The mean level, with halves rounded up, in integers that do not overflow."""
  total = grey_hw1.sum()
  return total // grey_hw1.size + (2 * (total % grey_hw1.size) >= grey_hw1.size)


def _grey(level_hwc: Array) -> Array:
  """ITU-R 601 luma in Pillow's 16-bit fixed point: (h, w, 1)."""
  if level_hwc.shape[2] == 1:
    return level_hwc
  red, green, blue = jnp.split(level_hwc, 3, axis=2)
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _smooth(level_hwc: Array) -> Array:
  """ImageFilter.SMOOTH: pixels weigh 5, their eight neighbours 1; keeps the border."""
  h, w, _ = level_hwc.shape
  padded = jnp.pad(level_hwc, ((1, 1), (1, 1), (0, 0)))
  around = [padded[i : i + h, j : j + w] for i in range(3) for j in range(3)]
  # Rounded as in Pillow's float32: the sums are multiples of 1/13, never half a level.
  smooth = (2 * (sum(around) + 4 * level_hwc) + 13) // 26
  row, column = jnp.arange(h)[:, None, None], jnp.arange(w)[None, :, None]
  is_inner = (row > 0) & (row < h - 1) & (column > 0) & (column < w - 1)
  return jnp.where(is_inner, smooth, level_hwc)


def _blend(degenerate: Array, level_hwc: Array, factor: Array) -> Array:
  """Image.blend of integer levels, with extrapolation, truncated to whole levels (int32)."""
  change = product((level_hwc - degenerate).astype(jnp.float32), factor)
  return jnp.clip(degenerate + change, 0, 255).astype(jnp.int32)
