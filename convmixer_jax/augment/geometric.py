"""Affine transforms of uint8 images by Pillow's rules, each image with its own.

Pixel (i, j) covers [j, j + 1) x [i, i + 1), so its centre lies at (j + 0.5, i + 0.5). A matrix
takes centres of output pixels to points of the input, both seen from the centre of the image:
there the coordinates are small, and so are float32's errors. A point outside of the image gives
the fill colour; the neighbours that an interpolation needs are clamped to the image.

Dimension letters: b batch, h height, w width, c channels.
"""

from collections.abc import Callable, Sequence

from jax import Array
import jax.numpy as jnp

from convmixer_jax.augment.op import Interpolation, Op
from convmixer_jax.augment.rounding import product


def apply(
  image_bhwc: Array,
  op_b: Array,
  argument_b: Array,
  interpolation_b: Array,
  fill: Sequence[int],
  interpolations: Sequence[Interpolation] = tuple(Interpolation),
) -> Array:
  """Each image after its own geometric op; other ops leave it as it is.

  Args:
    image_bhwc: uint8.
    op_b: int32, numbers of `Op`.
    argument_b: float32, in the units named in `Op`.
    interpolation_b, fill, interpolations: see `affine`.

  Returns:
    uint8 of the same shape.
  """
  _, h, w, _ = image_bhwc.shape
  matrix_b23 = matrix(op_b, argument_b, h, w)
  return affine(image_bhwc, matrix_b23, interpolation_b, fill, interpolations)


def matrix(op_b: Array, argument_b: Array, height: int, width: int) -> Array:
  """(b, 2, 3) float32: the maps of the ops, for `affine`; the identity for other ops."""

  def if_op(op: Op, value: Array, otherwise: Array) -> Array:
    return jnp.where(op_b == op, value, otherwise)

  zero, one = jnp.zeros_like(argument_b), jnp.ones_like(argument_b)
  angle = jnp.deg2rad(argument_b)
  cosine, sine = (if_op(Op.ROTATE, f(angle), n) for f, n in ((jnp.cos, one), (jnp.sin, zero)))
  shear_x = if_op(Op.SHEAR_X, argument_b, if_op(Op.CENTRED_SHEAR_X, argument_b, -sine))
  shear_y = if_op(Op.SHEAR_Y, argument_b, if_op(Op.CENTRED_SHEAR_Y, argument_b, sine))
  x = if_op(Op.SHEAR_X, argument_b * (height / 2), if_op(Op.TRANSLATE_X, argument_b, zero))
  y = if_op(Op.SHEAR_Y, argument_b * (width / 2), if_op(Op.TRANSLATE_Y, argument_b, zero))
  rows = [jnp.stack(row, axis=-1) for row in ((cosine, shear_x, x), (shear_y, cosine, y))]
  return jnp.stack(rows, axis=1)


def affine(
  image_bhwc: Array,
  matrix_b23: Array,
  interpolation_b: Array,
  fill: Sequence[int],
  interpolations: Sequence[Interpolation] = tuple(Interpolation),
) -> Array:
  """Image.transform with AFFINE and fillcolor.

  Pillow computes in float64 and cuts to whole levels; in float32 a few pixels in ten thousand
  differ by a level.

  Args:
    image_bhwc: uint8.
    matrix_b23: float32, from the output's (x, y, 1) to the input's (x, y), in pixels from the
      centre of the image.
    interpolation_b: int32, numbers of `Interpolation`.
    fill: a level for each channel.
    interpolations: those that occur in `interpolation_b`; only they are computed.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: not uint8, no level for each channel, or no interpolation.
  """
  if image_bhwc.ndim != 4 or image_bhwc.dtype != jnp.uint8:
    raise ValueError(f"image_bhwc must be uint8 of 4 dimensions, got {image_bhwc.dtype} "
                     f"{image_bhwc.shape}")  # fmt: skip
  if len(fill) != image_bhwc.shape[3]:
    raise ValueError(f"fill must have a level for each of {image_bhwc.shape[3]} channels: {fill}")
  if not interpolations:
    raise ValueError("interpolations must name at least one")
  functions = {
    Interpolation.NEAREST: _nearest,
    Interpolation.BILINEAR: _bilinear,
    Interpolation.BICUBIC: _bicubic,
  }
  pixel = _pixel_reader(image_bhwc)
  _, h, w, _ = image_bhwc.shape
  first, *others = dict.fromkeys(interpolations)
  level, inside = functions[first](pixel, matrix_b23, h, w)
  for other in others:
    is_other = (interpolation_b == other)[:, None, None]
    other_level, other_inside = functions[other](pixel, matrix_b23, h, w)
    level = jnp.where(is_other[..., None], other_level, level)
    inside = jnp.where(is_other, other_inside, inside)
  fill_111c = jnp.array(fill, jnp.float32)[None, None, None]
  return jnp.where(inside[..., None], level, fill_111c).astype(jnp.uint8)


def _pixel_reader(image_bhwc: Array) -> Callable[[Array, Array], Array]:
  """A function from rows and columns, (b, h, w) int32, to levels, (b, h, w, c) float32."""
  b, h, w, c = image_bhwc.shape
  image_bnc = image_bhwc.reshape(b, h * w, c)

  def pixel(row_bhw: Array, column_bhw: Array) -> Array:
    index = jnp.clip(row_bhw, 0, h - 1) * w + jnp.clip(column_bhw, 0, w - 1)
    found = jnp.take_along_axis(
      image_bnc, index.reshape(b, -1, 1), axis=1, mode="promise_in_bounds"
    )
    return found.reshape(image_bhwc.shape).astype(jnp.float32)

  return pixel


def _points(matrix_b23: Array, row_1h1: Array, column_11w: Array, h: int, w: int) -> list[Array]:
  """Where the centres of output pixels fall on the input: x and y, from its top left corner."""
  x = (column_11w - (w - 1) / 2).astype(jnp.float32)
  y = (row_1h1 - (h - 1) / 2).astype(jnp.float32)
  return [
    product(by_x, x) + product(by_y, y) + shift + half
    for (by_x, by_y, shift), half in zip(_coefficients(matrix_b23), (w / 2, h / 2), strict=True)
  ]


def _coefficients(matrix_b23: Array) -> list[list[Array]]:
  return [[matrix_b23[:, i, j, None, None] for j in range(3)] for i in range(2)]


def _grid(h: int, w: int) -> tuple[Array, Array]:
  return jnp.arange(h)[None, :, None], jnp.arange(w)[None, None]


def _nearest(pixel: Callable, matrix_b23: Array, h: int, w: int) -> tuple[Array, Array]:
  """Levels (b, h, w, c) and whether the points are inside (b, h, w).

  Pillow walks the points in steps of 1/65536 pixel from the first.
  """

  def fixed(value: Array) -> Array:
    whole = jnp.floor(value)
    part = jnp.floor((value - whole) * 65536 + 0.5)
    return 65536 * whole.astype(jnp.int32) + part.astype(jnp.int32)

  row, column = _grid(h, w)
  first = _points(matrix_b23, row[:, :1], column[:, :, :1], h, w)
  x, y = (
    (fixed(start) + fixed(by_x) * column + fixed(by_y) * row) >> 16
    for start, (by_x, by_y, _) in zip(first, _coefficients(matrix_b23), strict=True)
  )
  return pixel(y, x), (x >= 0) & (x < w) & (y >= 0) & (y < h)


def _cells(matrix_b23: Array, h: int, w: int) -> tuple[Array, ...]:
  """The pixel up and left of each point, the way from its centre, and whether it is inside."""
  x, y = _points(matrix_b23, *_grid(h, w), h, w)
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  left, up = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
  across, down = ((a[..., None]) for a in (x - 0.5 - left, y - 0.5 - up))
  return up.astype(jnp.int32), left.astype(jnp.int32), down, across, inside


def _bilinear(pixel: Callable, matrix_b23: Array, h: int, w: int) -> tuple[Array, Array]:
  """As `_nearest`, of the four pixels around."""
  up, left, down, across, inside = _cells(matrix_b23, h, w)

  def between(near: Array, far: Array, way: Array) -> Array:
    return near + product(far - near, way)

  rows = [between(pixel(up + i, left), pixel(up + i, left + 1), across) for i in range(2)]
  return between(*rows, down), inside


def _bicubic(pixel: Callable, matrix_b23: Array, h: int, w: int) -> tuple[Array, Array]:
  """As `_nearest`, of the sixteen pixels around."""
  up, left, down, across, inside = _cells(matrix_b23, h, w)
  offsets = range(-1, 3)
  rows = [_cubic(*(pixel(up + i, left + j) for j in offsets), across) for i in offsets]
  return jnp.clip(_cubic(*rows, down), 0, 255), inside


def _cubic(p0: Array, p1: Array, p2: Array, p3: Array, way: Array) -> Array:
  """Between p1 and p2 with slopes p2 - p0 and p3 - p1: cubic convolution with a = -1.

  That is what Pillow transforms with (Geometry.c); it resizes with a = -0.5.
  """
  third = p1 - p0 + p3 - p2
  second = 2 * (p0 - p1) + p2 - p3
  return p1 + product(way, (p2 - p0) + product(way, second + product(way, third)))
