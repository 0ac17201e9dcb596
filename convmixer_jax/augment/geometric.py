"""Affine transforms of a uint8 image, with Pillow's conventions.

Pixel (i, j) covers [j, j + 1) x [i, i + 1), so its centre is (j + 0.5, i + 0.5). The centre of each
output pixel is mapped to a point of the input. Points outside the image get the fill colour; the
neighbours that interpolation needs are clamped to the image.

Pillow computes the points in float64. Here they are fixed-point, in units of 2**-31 pixel split
into two integers, so which pixels they touch does not depend on rounding or on the device.

Dimension letters: b batch, h height, w width, c channels.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from convmixer_jax.augment.op import Interpolation, Op
from convmixer_jax.augment.rounding import product


class Affine(NamedTuple):
  """Maps output points (x, y) to input points: linear @ (x, y) + shift, in pixels.

  Attributes:
    linear_22: float32, of magnitude below 2.
    shift_2: float32.
    centred: whether x and y are relative to the image centre, otherwise to its top left corner.
  """

  linear_22: Array
  shift_2: Array
  centred: Array


def transform_of(op_b: Array, argument_b: Array) -> Affine:
  """The transforms of the ops, with a first axis b; the identity for other ops."""

  def argument_of(*ops: Op) -> Array:
    return jnp.where(jnp.isin(op_b, jnp.array(ops)), argument_b, 0)

  angle = jnp.deg2rad(argument_of(Op.ROTATE))
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  shear_x = argument_of(Op.SHEAR_X, Op.CENTRED_SHEAR_X)
  shear_y = argument_of(Op.SHEAR_Y, Op.CENTRED_SHEAR_Y)
  rows = [jnp.stack(row, axis=-1) for row in ((cosine, shear_x - sine), (shear_y + sine, cosine))]
  shift = [argument_of(Op.TRANSLATE_X), argument_of(Op.TRANSLATE_Y)]
  corner = (op_b == Op.SHEAR_X) | (op_b == Op.SHEAR_Y)
  return Affine(jnp.stack(rows, axis=-2), jnp.stack(shift, axis=-1), ~corner)


def apply(
  image_hwc: Array,
  op: Array,
  transform: Affine,
  interpolation: Array,
  fill: Sequence[int],
  interpolations: Sequence[Interpolation] = tuple(Interpolation),
) -> Array:
  """Applies a geometric op; other ops leave the image unchanged.

  Args:
    image_hwc: uint8, sides up to 4096.
    op: int32, a number of `Op`.
    transform: of the op, see `transform_of`.
    interpolation: int32, a number of `Interpolation`.
    fill: one level per channel.
    interpolations: those that `interpolation` may be.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: if the dtype or size is wrong, `fill` does not have one level per channel, or
      `interpolations` is empty.
  """
  if not interpolations:
    raise ValueError("interpolations must name at least one")
  branches = [lambda image, _: image]
  number = jnp.zeros((), jnp.int32)
  for kind in interpolations:
    number = jnp.where((op >= Op.ROTATE) & (interpolation == kind), len(branches), number)
    branches.append(functools.partial(affine, interpolation=kind, fill=fill))
  return jax.lax.switch(number, branches, image_hwc, transform)


def affine(
  image_hwc: Array, transform: Affine, interpolation: Interpolation, fill: Sequence[int]
) -> Array:
  """`Image.transform` with AFFINE and fillcolor; arguments and errors are as in `apply`.

  Pillow truncates float64 values to whole levels. With float32, about one value in ten thousand
  differs by one level.
  """
  h, w, c = image_hwc.shape
  if image_hwc.dtype != jnp.uint8 or max(h, w) > 4096:
    raise ValueError(
      f"image_hwc must be uint8 with sides up to 4096, got {image_hwc.dtype} {image_hwc.shape}"
    )
  if len(fill) != c:
    raise ValueError(f"fill must be {c} levels, one for each channel, got {fill}")
  functions = {
    Interpolation.NEAREST: _nearest,
    Interpolation.BILINEAR: _bilinear,
    Interpolation.BICUBIC: _bicubic,
  }
  level, inside = functions[interpolation](image_hwc, transform)
  fill_11c = jnp.array(fill, jnp.float32)[None, None]
  return jnp.where(inside[..., None], level, fill_11c).astype(jnp.uint8)


def _neighbours(image_hwc: Array, row_hw: Array, column_hw: Array, offsets: range) -> Array:
  """Levels at (row + i, column + j) for all offsets i and j, clamped to the image.

  Args:
    image_hwc: uint8.
    row_hw, column_hw: int32; if one is outside [-offsets[-1], size), the result is arbitrary.
    offsets: from -k to k + 1, or 0 only.

  Returns:
    float32 [i, j, h, w, c].
  """
  h, w, c = image_hwc.shape
  first, last, size = offsets[0], offsets[-1], len(offsets)
  rows, columns = h + last, w + last
  padded = jnp.pad(image_hwc, ((last - first, last),) * 2 + ((0, 0),), mode="edge")
  # Of each pixel its neighbours side by side. One look-up then finds them all, for which a TPU
  # takes as long as for a single level.
  beside = jnp.concatenate([padded[:, j : j + columns] for j in range(size)], 2)
  around = jnp.concatenate([beside[i : i + rows] for i in range(size)], 2)
  row_hw, column_hw = (
    jnp.clip(place + last, 0, count - 1) for place, count in ((row_hw, rows), (column_hw, columns))
  )
  found = (
    around.reshape(rows * columns, -1)
    .at[row_hw * columns + column_hw]
    .get(mode="promise_in_bounds")
  )
  found = found.reshape(h, w, size, size, c).astype(jnp.float32)
  return jnp.moveaxis(found, (2, 3), (0, 1))


def _points(transform: Affine, row: Array, column: Array, h: int, w: int) -> list:
  """Input points x and y of the output pixels' centres, from the input's top left corner.

  Each is a pair of int32: high, in units of 2**-16 pixel, and low, below 2**15, in units of 2**-31.
  """
  points = []
  for axis, size in enumerate((w, h)):
    whole = jnp.floor(transform.shift_2[axis])
    part = jnp.minimum(transform.shift_2[axis] - whole, 1 - 2.0**-24)  # not rounded up to 1
    part = (part * 2.0**31).astype(jnp.int32)
    origin = jnp.where(transform.centred, size << 15, 0)
    high = (whole.astype(jnp.int32) << 16) + (part >> 15) + origin
    low = part & 0x7FFF
    for source, (place, side) in enumerate(((column, w), (row, h))):
      half_pixels = 2 * place + 1 - jnp.where(transform.centred, side, 0)
      factor = _fixed(transform.linear_22[axis, source])
      high += half_pixels * (factor >> 15)
      low += half_pixels * (factor & 0x7FFF)
    points.append((high + (low >> 15), low & 0x7FFF))
  return points


def _fixed(factor: Array) -> Array:
  """Converts to int32 in units of 2**-30; exact for float32 values of 2**-6 and above."""
  return jnp.round(factor * 2.0**30).astype(jnp.int32)


def _grid(h: int, w: int) -> tuple[Array, Array]:
  return jnp.arange(h)[:, None], jnp.arange(w)[None]


def _nearest(image_hwc: Array, transform: Affine) -> tuple[Array, Array]:
  """Levels (h, w, c), and whether the points are inside the image (h, w).

  Like Pillow, steps from the first point in multiples of 2**-16 pixel.
  """
  h, w, _ = image_hwc.shape
  row, column = _grid(h, w)
  first = _points(transform, row[:1], column[:, :1], h, w)
  step = (_fixed(transform.linear_22) + (1 << 13)) >> 14
  x, y = (
    (high + (low >> 14) + step[i, 0] * column + step[i, 1] * row) >> 16
    for i, (high, low) in enumerate(first)
  )
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  return _neighbours(image_hwc, y, x, range(1))[0, 0], inside


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


def _bilinear(image_hwc: Array, transform: Affine) -> tuple[Array, Array]:
  """Like `_nearest`, but interpolates four pixels and truncates to a whole level."""
  return _separable(_linear, range(2), image_hwc, transform)


def _bicubic(image_hwc: Array, transform: Affine) -> tuple[Array, Array]:
  """Like `_bilinear`, with sixteen pixels."""
  return _separable(_cubic, range(-1, 3), image_hwc, transform)


def _separable(
  between: Callable, offsets: range, image_hwc: Array, transform: Affine
) -> tuple[Array, Array]:
  """Interpolates with `between` along the rows, then along the resulting column."""
  h, w, _ = image_hwc.shape
  up, left, down, across, inside = _cells(transform, h, w)
  level = _neighbours(image_hwc, up, left, offsets)
  base = level[-offsets[0], -offsets[0]]  # differences from it are small; so are float32's errors
  rows = [[level[i, j] - base for j in range(len(offsets))] for i in range(len(offsets))]
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
