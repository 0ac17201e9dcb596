"""RandAugment's photometric ops on uint8 images, with Pillow's rounding.

All ops but two map the levels of a channel through a table of 256 entries, which is one look-up per
pixel for any op. Color and Sharpness blend the image with a version of itself. A batch therefore
takes one pass, in which the ops that do not apply to an image are neutral.

Dimension letters: b batch, h height, w width, c channels, v level (0..255).
"""

import jax
from jax import Array
import jax.numpy as jnp

from convmixer_jax.augment.op import Op
from convmixer_jax.augment.rounding import product


def apply(image_bhwc: Array, op_b: Array, argument_b: Array) -> Array:
  """Applies each image's photometric op; other ops leave the image unchanged.

  Results are identical to Pillow's ImageOps and ImageEnhance. Posterize with 0 bits gives a black
  image, as in Pillow before version 13, which rejects it.

  Args:
    image_bhwc: uint8, with one channel (grey; Color has no effect) or three (RGB).
    op_b: int32, numbers of `Op`.
    argument_b: float32, in the units named in `Op`.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: if the dtype, number of channels or number of dimensions is wrong.
  """
  if image_bhwc.ndim != 4 or image_bhwc.dtype != jnp.uint8 or image_bhwc.shape[3] not in (1, 3):
    raise ValueError(
      "image_bhwc must be uint8 of shape (batch, height, width, 1 or 3), "
      f"got {image_bhwc.dtype} {image_bhwc.shape}"
    )
  b, _, _, c = image_bhwc.shape
  op_b1, argument_b1 = op_b[:, None], argument_b[:, None]
  grey_bhw1 = _grey(image_bhwc)
  mean_b1 = _mean(grey_bhw1)

  is_counted_b1 = (op_b1 == Op.AUTO_CONTRAST) | (op_b1 == Op.EQUALIZE)

  def table_of(level_bn: Array) -> Array:
    count_bv = _histogram(level_bn, is_counted_b1)
    return _table(op_b1, argument_b1, count_bv, mean_b1)

  # A loop over the channels prevents fusion. Otherwise the compiler would replace the look-up by
  # the formulas of the tables, evaluated for each pixel.
  table_cbv = jax.lax.map(table_of, image_bhwc.transpose(3, 0, 1, 2).reshape(c, b, -1))
  op_b111, argument_b111 = op_b1[..., None, None], argument_b1[..., None, None]
  is_sharpness = op_b111 == Op.SHARPNESS
  degenerate = jnp.where(is_sharpness, _smooth(image_bhwc), grey_bhw1)
  factor = jnp.where(is_sharpness | (op_b111 == Op.COLOR), argument_b111, 1)
  return _blend(degenerate, _look_up(table_cbv, image_bhwc), factor).astype(jnp.uint8)


def _table(op_b1: Array, argument_b1: Array, count_bv: Array, mean_b1: Array) -> Array:
  """The new level of each level of one channel, (b, v) int32."""
  level = jnp.arange(256)[None]
  whole = argument_b1.astype(jnp.int32)
  tables = {
    Op.AUTO_CONTRAST: _stretched(level, count_bv),
    Op.EQUALIZE: _equalized(level, count_bv),
    Op.INVERT: 255 - level,
    Op.POSTERIZE: level & (256 - (1 << (8 - whole))),
    Op.SOLARIZE: jnp.where(level < argument_b1, level, 255 - level),
    Op.SOLARIZE_ADD: jnp.where(level < 128, jnp.minimum(level + whole, 255), level),
    Op.BRIGHTNESS: _blend(jnp.zeros_like(level), level, argument_b1),
    Op.CONTRAST: _blend(mean_b1, level, argument_b1),
  }
  table = jnp.broadcast_to(level, count_bv.shape)
  for op, of_op in tables.items():
    table = jnp.where(op_b1 == op, of_op, table)
  return table


def _stretched(level: Array, count_bv: Array) -> Array:
  """ImageOps.autocontrast without cutoff: maps the darkest level to 0, the brightest to 255.

  Uses float64 because Pillow truncates float64 values to whole levels, and some fall just short of
  one. The maximum with 0 changes no value; see `product` for why it is needed.
  """
  low, high = _extremes(count_bv)
  with jax.enable_x64(True):
    scale = 255 / jnp.maximum(high - low, 1).astype(jnp.float64)
    scaled, offset = (jnp.maximum(a.astype(jnp.float64) * scale, 0) for a in (level, low))
    stretched = jnp.clip(scaled - offset, 0, 255).astype(jnp.int32)
  return jnp.where(high > low, stretched, level)


def _equalized(level: Array, count_bv: Array) -> Array:
  """ImageOps.equalize: the number of darker pixels, in steps of 1/255 of all but the brightest."""
  _, high = _extremes(count_bv)
  brightest = jnp.take_along_axis(count_bv, high, axis=1)
  step = (count_bv.sum(1, keepdims=True) - brightest) // 255
  darker = jnp.cumsum(count_bv, axis=1) - count_bv
  equalized = jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255)
  return jnp.where(step > 0, equalized, level)


def _extremes(count_bv: Array) -> tuple[Array, Array]:
  """The lowest and highest levels that occur, each (b, 1)."""
  occurs = count_bv > 0
  low = jnp.argmax(occurs, axis=1, keepdims=True)
  return low, 255 - jnp.argmax(occurs[:, ::-1], axis=1, keepdims=True)


def _mean(grey_bhw1: Array) -> Array:
  """The mean level, (b, 1), with halves rounded up, in integers that do not overflow."""
  size = grey_bhw1.shape[1] * grey_bhw1.shape[2]
  total = grey_bhw1.sum((1, 2))
  return total // size + (2 * (total % size) >= size)


def _histogram(level_bn: Array, is_counted_b1: Array) -> Array:
  """The count of each level, (b, v) int32; 0 where not counted, which saves the additions."""

  def count(level_n: Array) -> Array:
    return jnp.zeros(256, jnp.int32).at[level_n].add(1, mode="drop")

  return jax.vmap(count)(jnp.where(is_counted_b1, level_bn.astype(jnp.int32), 256))


def _look_up(table_cbv: Array, image_bhwc: Array) -> Array:
  b, h, w, c = image_bhwc.shape
  level_bnc = image_bhwc.reshape(b, h * w, c).astype(jnp.int32)
  table_bvc = table_cbv.transpose(1, 2, 0)
  found = jnp.take_along_axis(table_bvc, level_bnc, axis=1, mode="promise_in_bounds")
  return found.reshape(image_bhwc.shape)


def _grey(image_bhwc: Array) -> Array:
  """ITU-R 601 luma in Pillow's 16-bit fixed point: (b, h, w, 1) int32."""
  image = image_bhwc.astype(jnp.int32)
  if image.shape[3] == 1:
    return image
  red, green, blue = jnp.split(image, 3, axis=3)
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _smooth(image_bhwc: Array) -> Array:
  """ImageFilter.SMOOTH, int32: pixels weigh 5, their eight neighbours 1; keeps the border."""
  _, h, w, _ = image_bhwc.shape
  padded = jnp.pad(image_bhwc, ((0, 0), (1, 1), (1, 1), (0, 0)))
  around = [padded[:, i : i + h, j : j + w].astype(jnp.int32) for i in range(3) for j in range(3)]
  image = around[4]
  # Rounded as in Pillow's float32: the sums are multiples of 1/13, never half a level.
  smooth = (2 * (sum(around) + 4 * image) + 13) // 26
  row, column = jnp.arange(h)[None, :, None, None], jnp.arange(w)[None, None, :, None]
  is_inner = (row > 0) & (row < h - 1) & (column > 0) & (column < w - 1)
  return jnp.where(is_inner, smooth, image)


def _blend(degenerate: Array, image: Array, factor: Array) -> Array:
  """Image.blend of integer levels, with extrapolation, truncated to whole levels (int32)."""
  change = product((image - degenerate).astype(jnp.float32), factor)
  return jnp.clip(degenerate + change, 0, 255).astype(jnp.int32)
