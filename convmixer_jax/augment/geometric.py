"""Per-image affine transforms of uint8 images, with Pillow's conventions.

Pixel (i, j) covers [j, j + 1) x [i, i + 1), so its centre is (j + 0.5, i + 0.5). The centre of each
output pixel is mapped to a point of the input. Points outside the image get the fill colour; the
neighbours that interpolation needs are clamped to the image.

Pillow computes the points in float64. Here they are fixed-point, in units of 2**-31 pixel split
into two integers, so which pixels they touch does not depend on rounding or on the device.

Dimension letters: b batch, h height, w width, c channels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp

from convmixer_jax.augment.op import Interpolation, Op
from convmixer_jax.augment.rounding import product


class Affine(NamedTuple):
  """Maps output points (x, y) to input points: linear @ (x, y) + shift, in pixels.

  Attributes:
    linear_b22: float32, of magnitude below 2.
    shift_b2: float32.
    centred_b: whether x and y are relative to the image centre, otherwise to its top left corner.
  """

  linear_b22: Array
  shift_b2: Array
  centred_b: Array


def apply(
  image_bhwc: Array,
  op_b: Array,
  argument_b: Array,
  interpolation_b: Array,
  fill: Sequence[int],
  interpolations: Sequence[Interpolation] = tuple(Interpolation),
) -> Array:
  """Applies each image's geometric op; other ops leave the image unchanged.

  Pillow truncates float64 values to whole levels. With float32, about one value in ten thousand
  differs by one level.

  Args:
    image_bhwc: uint8, sides up to 4096.
    op_b: int32, numbers of `Op`.
    argument_b: float32, in the units named in `Op`.
    interpolation_b: int32, numbers of `Interpolation`.
    fill: one level per channel.
    interpolations: those that occur in `interpolation_b`; only these are computed.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: if the dtype or size is wrong, `fill` does not have one level per channel, or
      `interpolations` is empty.
  """
  return affine(image_bhwc, transform_of(op_b, argument_b), interpolation_b, fill, interpolations)


def transform_of(op_b: Array, argument_b: Array) -> Affine:
  """The transforms of the ops; the identity for other ops."""

  def argument_of(*ops: Op) -> Array:
    return jnp.where(jnp.isin(op_b, jnp.array(ops)), argument_b, 0)

  angle = jnp.deg2rad(argument_of(Op.ROTATE))
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  shear_x = argument_of(Op.SHEAR_X, Op.CENTRED_SHEAR_X)
  shear_y = argument_of(Op.SHEAR_Y, Op.CENTRED_SHEAR_Y)
  rows = [jnp.stack(row, axis=-1) for row in ((cosine, shear_x - sine), (shear_y + sine, cosine))]
  shift = [argument_of(Op.TRANSLATE_X), argument_of(Op.TRANSLATE_Y)]
  corner = (op_b == Op.SHEAR_X) | (op_b == Op.SHEAR_Y)
  return Affine(jnp.stack(rows, axis=1), jnp.stack(shift, axis=-1), ~corner)


def affine(
  image_bhwc: Array,
  transform: Affine,
  interpolation_b: Array,
  fill: Sequence[int],
  interpolations: Sequence[Interpolation] = tuple(Interpolation),
) -> Array:
  """`Image.transform` with AFFINE and fillcolor; arguments are as in `apply`."""
  _, h, w, c = image_bhwc.shape
  if image_bhwc.dtype != jnp.uint8 or max(h, w) > 4096:
    raise ValueError(
      f"image_bhwc must be uint8 with sides up to 4096, got {image_bhwc.dtype} {image_bhwc.shape}"
    )
  if len(fill) != c:
    raise ValueError(f"fill must be {c} levels, one for each channel, got {fill}")
  if not interpolations:
    raise ValueError("interpolations must name at least one")
  functions = {
    Interpolation.NEAREST: _nearest,
    Interpolation.BILINEAR: _bilinear,
    Interpolation.BICUBIC: _bicubic,
  }
  pixel = _pixel_reader(image_bhwc)
  first, *others = dict.fromkeys(interpolations)
  level, inside = functions[first](pixel, transform, h, w)
  for other in others:
    is_other = (interpolation_b == other)[:, None, None]
    other_level, other_inside = functions[other](pixel, transform, h, w)
    level = jnp.where(is_other[..., None], other_level, level)
    inside = jnp.where(is_other, other_inside, inside)
  fill_111c = jnp.array(fill, jnp.float32)[None, None, None]
  return jnp.where(inside[..., None], level, fill_111c).astype(jnp.uint8)


def _pixel_reader(image_bhwc: Array) -> Callable[[Array, Array], Array]:
  """Returns a function from rows and columns, int32 (b, h, w), to levels, float32 (b, h, w, c)."""
  b, h, w, c = image_bhwc.shape
  image_bnc = image_bhwc.reshape(b, h * w, c)

  def pixel(row_bhw: Array, column_bhw: Array) -> Array:
    index = jnp.clip(row_bhw, 0, h - 1) * w + jnp.clip(column_bhw, 0, w - 1)
    found = jnp.take_along_axis(
      image_bnc, index.reshape(b, -1, 1), axis=1, mode="promise_in_bounds"
    )
    return found.reshape(image_bhwc.shape).astype(jnp.float32)

  return pixel


def _points(transform: Affine, row: Array, column: Array, h: int, w: int) -> list:
  """Input points x and y of the output pixels' centres, from the input's top left corner.

  Each is a pair of int32: high, in units of 2**-16 pixel, and low, below 2**15, in units of 2**-31.
  """

  def per_image(array_b: Array) -> Array:
    return array_b[:, None, None]

  points = []
  for axis, size in enumerate((w, h)):
    whole = jnp.floor(transform.shift_b2[:, axis])
    part = jnp.minimum(transform.shift_b2[:, axis] - whole, 1 - 2.0**-24)  # not rounded up to 1
    part = (part * 2.0**31).astype(jnp.int32)
    origin = jnp.where(transform.centred_b, size << 15, 0)
    high = per_image((whole.astype(jnp.int32) << 16) + (part >> 15) + origin)
    low = per_image(part & 0x7FFF)
    for source, (place, side) in enumerate(((column, w), (row, h))):
      half_pixels = 2 * place + 1 - per_image(jnp.where(transform.centred_b, side, 0))
      factor = per_image(_fixed(transform.linear_b22[:, axis, source]))
      high += half_pixels * (factor >> 15)
      low += half_pixels * (factor & 0x7FFF)
    points.append((high + (low >> 15), low & 0x7FFF))
  return points


def _fixed(factor_b: Array) -> Array:
  """Converts to int32 in units of 2**-30; exact for float32 values of 2**-6 and above."""
  return jnp.round(factor_b * 2.0**30).astype(jnp.int32)


def _grid(h: int, w: int) -> tuple[Array, Array]:
  return jnp.arange(h)[None, :, None], jnp.arange(w)[None, None]


def _nearest(pixel: Callable, transform: Affine, h: int, w: int) -> tuple[Array, Array]:
  """Levels (b, h, w, c), and whether the points are inside the image (b, h, w).

  Like Pillow, steps from the first point in multiples of 2**-16 pixel.
  """
  row, column = _grid(h, w)
  first = _points(transform, row[:, :1], column[:, :, :1], h, w)
  step = (_fixed(transform.linear_b22) + (1 << 13)) >> 14
  x, y = (
    (high + (low >> 14) + step[:, i, :1, None] * column + step[:, i, 1:, None] * row) >> 16
    for i, (high, low) in enumerate(first)
  )
  return pixel(y, x), (x >= 0) & (x < w) & (y >= 0) & (y < h)


def _cells(transform: Affine, h: int, w: int) -> tuple[Array, ...]:
  """The pixel up and left of each point, the offset from its centre, and whether it is inside."""
  inside, corner, way = jnp.array(True), [], []
  for size, (high, low) in zip((w, h), _points(transform, *_grid(h, w), h, w), strict=True):
    inside &= (high >= 0) & (high < size << 16)
    high -= 1 << 15
    corner.append(high >> 16)
    way.append((((high & 0xFFFF) << 15) | low)[..., None].astype(jnp.float32) * 2.0**-31)
  (left, up), (across, down) = corner, way
  return up, left, down, across, inside


def _bilinear(pixel: Callable, transform: Affine, h: int, w: int) -> tuple[Array, Array]:
  """Like `_nearest`, but interpolates four pixels and truncates to a whole level."""
  return _separable(_linear, range(2), pixel, transform, h, w)


def _bicubic(pixel: Callable, transform: Affine, h: int, w: int) -> tuple[Array, Array]:
  """Like `_bilinear`, with sixteen pixels."""
  return _separable(_cubic, range(-1, 3), pixel, transform, h, w)


def _separable(
  between: Callable, offsets: range, pixel: Callable, transform: Affine, h: int, w: int
) -> tuple[Array, Array]:
  """Interpolates with `between` along the rows, then along the resulting column."""
  up, left, down, across, inside = _cells(transform, h, w)
  base = pixel(up, left)  # differences from it are small, and so are their float32 errors
  rows = [[pixel(up + i, left + j) - base for j in offsets] for i in offsets]
  change = between([between(row, across) for row in rows], down)
  return jnp.clip(base + jnp.floor(change), 0, 255), inside


def _linear(values: Sequence[Array], way: Array) -> Array:
  return values[0] + product(values[1] - values[0], way)


def _cubic(values: Sequence[Array], way: Array) -> Array:
  """Interpolates between the middle two values by cubic convolution with a = -1.

  The slope at a value is the full difference of its neighbours, not half of it. Pillow uses a = -1
  for transforms (Geometry.c), and a = -0.5 for resizing.
  """
  p0, p1, p2, p3 = values
  third = p1 - p0 + p3 - p2
  second = 2 * (p0 - p1) + p2 - p3
  return p1 + product(way, (p2 - p0) + product(way, second + product(way, third)))
