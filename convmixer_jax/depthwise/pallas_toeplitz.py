"""Depthwise convolution of channel-major bfloat16 feature maps as matrix products on tensor cores.

For one channel, each kernel row is a banded Toeplitz (w, w) matrix that multiplies a row of the
feature map. All rows of all images form one tall matrix, so the convolution is k products of
(b * h, w) by (w, w). They take up to w / k times the operations of the direct sum, on units that
are more than ten times as fast. Each element of the feature map is loaded k times, not
k * (rows + k - 1) / rows times. The kernel gradient is the sums along the diagonals of the k
products x^T g. See `pallas_gpu` for when this is used.
"""

from typing import Any

import jax
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pl_triton
import jax.numpy as jnp

# Estimates, not yet measured on a GPU: rows of a product and warps; for the gradient also kernel
# rows per program (more would not fit into the registers) and the number of programs.
_ROWS, _WARPS = 128, 4
_GRADIENT_ROWS, _GRADIENT_WARPS, _KERNEL_ROWS, _PROGRAMS = 128, 4, 3, 1024


def correlate(x_cbhw: Array, kernel_hwc: Array, *, low: tuple[int, int], interpret: bool) -> Array:
  """Returns the (c, b, h, w) weighted sum of the shifted feature maps, in bfloat16.

  Args:
    x_cbhw: bfloat16; sums are in float32.
    kernel_hwc: rounded to bfloat16.
    low: rows and columns of zero padding at the top and left; the rest is at the bottom and right.
    interpret: run without a GPU, slowly.
  """
  (channels, batch, height, width), (kernel_h, kernel_w, _) = x_cbhw.shape, kernel_hwc.shape
  kernel_chw = kernel_hwc.astype(x_cbhw.dtype).transpose(2, 0, 1)
  x_crw = x_cbhw.reshape(channels, batch * height, width)
  tiles, block_w = pl.cdiv(batch * height, _ROWS), _block_w(width)

  def kernel(x_ref: Any, kernel_ref: Any, y_ref: Any) -> None:
    first = lax.rem(pl.program_id(0), tiles) * _ROWS
    x_column = lax.broadcasted_iota(jnp.int32, (block_w, block_w), 0)
    y_column = lax.broadcasted_iota(jnp.int32, (block_w, block_w), 1)
    tap = x_column - y_column + low[1]
    total = jnp.zeros((_ROWS, block_w), jnp.float32)
    for i in range(kernel_h):
      band = kernel_ref.at[i, tap]
      band = pl_triton.load(band, mask=(tap >= 0) & (tap < kernel_w), other=0)
      rows = _load_rows(x_ref, first, i - low[0], height, (_ROWS, block_w))
      total += jnp.dot(rows, band, preferred_element_type=jnp.float32)
    _store(y_ref, first, total.astype(y_ref.dtype))

  y_crw = pl.pallas_call(
    kernel,
    _varying_as(x_cbhw, x_crw.shape, x_cbhw.dtype),
    grid=(channels * tiles,),
    in_specs=[
      pl.BlockSpec((None, *x_crw.shape[1:]), lambda n: (lax.div(n, tiles), 0, 0)),
      pl.BlockSpec((None, kernel_h, kernel_w), lambda n: (lax.div(n, tiles), 0, 0)),
    ],
    out_specs=pl.BlockSpec((None, *x_crw.shape[1:]), lambda n: (lax.div(n, tiles), 0, 0)),
    interpret=interpret,
    compiler_params=pl_triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    name="depthwise_toeplitz",
  )(x_crw, kernel_chw)
  return y_crw.reshape(x_cbhw.shape)


def kernel_gradient(
  x_cbhw: Array, g_cbhw: Array, kernel_size: tuple[int, ...], *, interpret: bool
) -> Array:
  """Returns the float32 (rows, columns, c) sum over b, h, w of `g_cbhw` times the shifted `x_cbhw`.

  Args:
    x_cbhw, g_cbhw: the input and the gradient of the output, bfloat16.
    kernel_size: rows and columns; the padding is SAME.
    interpret: run without a GPU, slowly.
  """
  (channels, batch, height, width), (kernel_h, kernel_w) = x_cbhw.shape, kernel_size
  low_h, low_w = (kernel_h - 1) // 2, (kernel_w - 1) // 2
  x_crw, g_crw = (a.reshape(channels, batch * height, width) for a in (x_cbhw, g_cbhw))
  tiles, block_w = pl.cdiv(batch * height, _GRADIENT_ROWS), _block_w(width)
  block_i = pl.cdiv(kernel_h, pl.cdiv(kernel_h, _KERNEL_ROWS))
  blocks_i = pl.cdiv(kernel_h, block_i)
  shares = min(tiles, pl.cdiv(_PROGRAMS, channels * blocks_i))
  tiles = pl.cdiv(tiles, shares)

  # Programs that differ only in the kernel rows read the same feature maps, so they are adjacent.
  def split(program: Array) -> tuple[Array, Array, Array]:
    rest = lax.div(program, blocks_i)
    return lax.div(rest, shares), lax.rem(rest, shares), lax.rem(program, blocks_i)

  def product(program: Array) -> tuple:
    return *split(program), 0, 0

  def kernel(x_ref: Any, g_ref: Any, product_ref: Any) -> None:
    _, share, i = split(pl.program_id(0))
    first_tile, first_i, shape = share * tiles, i * block_i, (_GRADIENT_ROWS, block_w)

    def add_tile(t: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
      first = (first_tile + t) * _GRADIENT_ROWS
      g = _load_rows(g_ref, first, 0, height, shape)
      rows = (
        _load_rows(x_ref, first, first_i + (n - low_h), height, shape) for n in range(block_i)
      )
      return tuple(
        total + jnp.dot(x.T, g, preferred_element_type=jnp.float32)
        for total, x in zip(totals, rows, strict=True)
      )

    zeros = (jnp.zeros((block_w, block_w), jnp.float32),) * block_i
    for n, total in enumerate(lax.fori_loop(0, tiles, add_tile, zeros)):
      product_ref[n] = total

  products = pl.pallas_call(
    kernel,
    _varying_as(g_cbhw, (channels, shares, kernel_h, block_w, block_w), jnp.float32),
    grid=(channels * shares * blocks_i,),
    in_specs=[pl.BlockSpec((None, *x_crw.shape[1:]), lambda n: (split(n)[0], 0, 0))] * 2,
    out_specs=pl.BlockSpec((None, None, block_i, block_w, block_w), product),
    interpret=interpret,
    compiler_params=pl_triton.CompilerParams(num_warps=_GRADIENT_WARPS, num_stages=1),
    name="depthwise_toeplitz_gradient",
  )(x_crw, g_crw)
  # Element (x column, y column) of a product belongs to kernel column x - y + low.
  y_column = jnp.broadcast_to(jnp.arange(width)[None], (kernel_w, width))
  x_column = y_column + jnp.broadcast_to(jnp.arange(kernel_w)[:, None] - low_w, y_column.shape)
  is_inside = (x_column >= 0) & (x_column < width)
  diagonals = products.sum(1)[:, :, jnp.where(is_inside, x_column, 0), y_column]
  is_inside = jnp.broadcast_to(is_inside[None, None], diagonals.shape)
  return jnp.where(is_inside, diagonals, 0).sum(-1).transpose(1, 2, 0)


def _block_w(width: int) -> int:
  """Columns of a product: a power of two, at least a tensor core's 16."""
  return max(16, pl.next_power_of_2(width))


def _coordinates(first: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
  """Row and column of each element of a block."""
  return (
    first + lax.broadcasted_iota(jnp.int32, shape, 0),
    lax.broadcasted_iota(jnp.int32, shape, 1),
  )


def _load_rows(ref: Any, first: Any, shift: Any, height: int, shape: tuple[int, int]) -> Array:
  """Loads rows of `ref` from `first + shift`; rows shifted into another image are zero."""
  row, column = _coordinates(first, shape)
  h = lax.rem(row, height) + shift
  is_inside = (h >= 0) & (h < height) & (row < ref.shape[0]) & (column < ref.shape[1])
  return pl_triton.load(ref.at[row + shift, column], mask=is_inside, other=0)


def _store(ref: Any, first: Any, block: Array) -> None:
  """Stores the part of a block that is inside `ref`."""
  row, column = _coordinates(first, block.shape)
  is_inside = (row < ref.shape[0]) & (column < ref.shape[1])
  pl_triton.store(ref.at[row, column], block, mask=is_inside)


def _varying_as(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  """The type of a result that, under `shard_map`, varies over the mesh axes of `x`."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
