"""What RandAugment does to the levels of uint8 images, to Pillow's rounding.

All but two ops map the levels of a channel by a table of 256 entries: one look-up per pixel,
whatever the op. Color and Sharpness blend the image with a version of itself. So a batch takes
one pass, in which every op that an image does not have is neutral.

Dimension letters: b batch, h height, w width, c channels, v level (0..255).
"""

import jax
from jax import Array
import jax.numpy as jnp

from convmixer_jax.augment.op import Op
from convmixer_jax.augment.rounding import product


def apply(image_bhwc: Array, op_b: Array, argument_b: Array) -> Array:
  """Each image after its own photometric op; other ops leave it as it is.

  Every level is that of Pillow's ImageOps and ImageEnhance, except that AutoContrast may be one
  level higher in at most 1 of 200 entries of a table: there Pillow's floating-point result of a
  whole number falls just short of it. A Pillow without 0 bits gives none there; here the image
  is black, as it was in earlier ones.

  Args:
    image_bhwc: uint8, of one channel (grey; then Color does nothing) or three (RGB).
    op_b: int32, numbers of `Op`.
    argument_b: float32, in the units named in `Op`.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: not uint8, or another number of channels or dimensions.
  """
  if image_bhwc.ndim != 4 or image_bhwc.dtype != jnp.uint8 or image_bhwc.shape[3] not in (1, 3):
    raise ValueError(
      "image_bhwc must be uint8 of shape (batch, height, width, 1 or 3), "
      f"got {image_bhwc.dtype} {image_bhwc.shape}"
    )
  op_b111, argument_b111 = (jnp.reshape(a, (-1, 1, 1, 1)) for a in (op_b, argument_b))
  grey_bhw1 = _grey(image_bhwc)
  table_bvc = _table(op_b111[..., 0], argument_b111[..., 0], _histogram(image_bhwc), grey_bhw1)
  is_sharpness = op_b111 == Op.SHARPNESS
  degenerate = jnp.where(is_sharpness, _smooth(image_bhwc), grey_bhw1)
  factor = jnp.where(is_sharpness | (op_b111 == Op.COLOR), argument_b111, 1)
  return _blend(degenerate, _look_up(table_bvc, image_bhwc), factor).astype(jnp.uint8)


def _table(op_b11: Array, argument_b11: Array, count_bvc: Array, grey_bhw1: Array) -> Array:
  """(b, v, c) int32: what becomes of each level."""
  level = jnp.arange(256)[None, :, None]
  whole = argument_b11.astype(jnp.int32)
  tables = {
    Op.AUTO_CONTRAST: _stretched(level, count_bvc),
    Op.EQUALIZE: _equalized(level, count_bvc),
    Op.INVERT: 255 - level,
    Op.POSTERIZE: level & (256 - (1 << (8 - whole))),
    Op.SOLARIZE: jnp.where(level < argument_b11, level, 255 - level),
    Op.SOLARIZE_ADD: jnp.where(level < 128, jnp.minimum(level + whole, 255), level),
    Op.BRIGHTNESS: _blend(jnp.zeros_like(level), level, argument_b11),
    Op.CONTRAST: _blend(_mean(grey_bhw1), level, argument_b11),
  }
  table = jnp.broadcast_to(level, count_bvc.shape)
  for op, of_op in tables.items():
    table = jnp.where(op_b11 == op, of_op, table)
  return table


def _stretched(level: Array, count_bvc: Array) -> Array:
  """ImageOps.autocontrast without cutoff: the darkest level to 0, the brightest to 255."""
  low, high = _extremes(count_bvc)
  spread = jnp.maximum(high - low, 1)
  return jnp.where(high > low, jnp.clip(255 * (level - low) // spread, 0, 255), level)


def _equalized(level: Array, count_bvc: Array) -> Array:
  """ImageOps.equalize: the number of darker pixels, in steps of 1/255 of all but the brightest."""
  _, high = _extremes(count_bvc)
  brightest = jnp.take_along_axis(count_bvc, high, axis=1)
  step = (count_bvc.sum(1, keepdims=True) - brightest) // 255
  darker = jnp.cumsum(count_bvc, axis=1) - count_bvc
  equalized = jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255)
  return jnp.where(step > 0, equalized, level)


def _extremes(count_bvc: Array) -> tuple[Array, Array]:
  """The lowest and the highest level that occurs, each (b, 1, c)."""
  occurs = count_bvc > 0
  low = jnp.argmax(occurs, axis=1, keepdims=True)
  return low, 255 - jnp.argmax(occurs[:, ::-1], axis=1, keepdims=True)


def _mean(grey_bhw1: Array) -> Array:
  """The mean level, (b, 1, 1), halves rounded up, in integers that no image overflows."""
  size = grey_bhw1.shape[1] * grey_bhw1.shape[2]
  total = grey_bhw1.sum((1, 2))[..., None]
  return total // size + (2 * (total % size) >= size)


def _histogram(image_bhwc: Array) -> Array:
  """How often each level occurs in each channel: (b, v, c) int32."""
  b, _, _, c = image_bhwc.shape

  def count(level_n: Array) -> Array:
    return jnp.zeros(256, jnp.int32).at[level_n].add(1, mode="promise_in_bounds")

  level_bcn = image_bhwc.transpose(0, 3, 1, 2).reshape(b, c, -1)
  return jax.vmap(jax.vmap(count))(level_bcn).transpose(0, 2, 1)


def _look_up(table_bvc: Array, image_bhwc: Array) -> Array:
  b, h, w, c = image_bhwc.shape
  level_bnc = image_bhwc.reshape(b, h * w, c).astype(jnp.int32)
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
  """ImageFilter.SMOOTH, int32: a pixel weighs 5, its eight neighbours 1; the border stays."""
  image = image_bhwc.astype(jnp.int32)
  _, h, w, _ = image.shape
  if min(h, w) < 3:
    return image
  rows = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
  total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * image[:, 1:-1, 1:-1]
  # Rounded; that is Pillow's float32 result too, for a 13th is never half a level.
  return image.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


def _blend(degenerate: Array, image: Array, factor: Array) -> Array:
  """Image.blend of integer levels: towards the image or beyond, cut to whole levels (int32)."""
  change = product((image - degenerate).astype(jnp.float32), factor)
  return jnp.clip(degenerate + change, 0, 255).astype(jnp.int32)
