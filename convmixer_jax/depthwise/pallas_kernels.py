"""The Pallas (Triton) kernels of `pallas_gpu`, which says how they work and why.

Importing this takes up to 0.4 s, so `pallas_gpu` does it when a kernel is first traced.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pl_triton
import jax.numpy as jnp

from convmixer_jax.depthwise.pallas_gpu import Blocks, varying_as


def correlate(
  x_bhwc: Array,
  kernel_hwc: Array,
  bias_c: Array | None = None,
  *,
  low: tuple[int, int],
  blocks: Blocks,
  interpret: bool,
  activation: Callable[[Array], Array] | None = None,
) -> Any:
  """Returns the (b, h, w, c) sum of the shifted maps, each times its weights, in `x_bhwc`'s dtype.

  With `activation`, `bias_c` is added first, and the result is a tuple with the float32 sums and
  sums of squares of the activation over b, h, w in addition, two arrays of shape (c,). They are
  those of the rounded map that is returned, as a reader of that map would compute them.

  Args:
    x_bhwc, kernel_hwc, bias_c: float32 or bfloat16.
    low: rows and columns of zeros in front of the map; the others are behind it.
    blocks: how the work is cut up.
    interpret: whether to run without a GPU, slowly.
    activation: an elementwise function that Triton knows, or None.
  """
  batch, height, width, channels = x_bhwc.shape
  block_h, block_w, block_c = _fit(blocks, x_bhwc.shape)
  tiles_h, tiles_w = pl.cdiv(height, block_h), pl.cdiv(width, block_w)
  blocks_c = pl.cdiv(channels, block_c)

  # Neighbouring programs take neighbouring channels, then neighbouring tiles: what two of them
  # both read is still in the second-level cache.
  def split(program: Array) -> tuple[Array, Array, Array, Array]:
    tile, c = lax.div(program, blocks_c), lax.rem(program, blocks_c)
    image_h, w = lax.div(tile, tiles_w), lax.rem(tile, tiles_w)
    return lax.div(image_h, tiles_h), lax.rem(image_h, tiles_h), w, c

  def image(program: Array) -> tuple:
    b, _, _, c = split(program)
    return b, 0, 0, c

  def per_channel(rank: int) -> pl.BlockSpec:
    shape = (*kernel_hwc.shape[:2], block_c)[3 - rank :]
    return pl.BlockSpec(shape, lambda n: (*(0,) * (rank - 1), lax.rem(n, blocks_c)))

  inputs = [x_bhwc, kernel_hwc]
  in_specs = [pl.BlockSpec((None, height, width, block_c), image), per_channel(3)]
  out_shape = [varying_as(x_bhwc, x_bhwc.shape, x_bhwc.dtype)]
  out_specs = [pl.BlockSpec((None, block_h, block_w, block_c), split)]
  if activation is not None:
    assert bias_c is not None
    inputs.append(bias_c)
    in_specs.append(per_channel(1))
    tiles = batch * tiles_h * tiles_w
    out_shape += [varying_as(x_bhwc, (tiles, channels), jnp.float32)] * 2
    partial = pl.BlockSpec((None, block_c), lambda n: (lax.div(n, blocks_c), lax.rem(n, blocks_c)))
    out_specs += [partial] * 2

  def kernel(x_ref: Any, kernel_ref: Any, *refs: Any) -> None:
    _, tile_h, tile_w, _ = split(pl.program_id(0))
    first_h = tile_h * block_h if tiles_h > 1 else 0
    first_w = tile_w * block_w if tiles_w > 1 else 0

    def add_column(j: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
      weights = [kernel_ref[i, j].astype(jnp.float32)[None] for i in range(kernel_ref.shape[0])]
      totals = list(sums)
      for r in _rows(block_h, height, low[0], len(weights)):
        row, column = first_h + (r - low[0]), first_w + (j - low[1])
        x_wc = _load_row(x_ref, (row,), column, (block_w, block_c))
        for h in range(max(0, r - len(weights) + 1), min(block_h, r + 1)):
          totals[h] = _multiply_add(x_wc, weights[r - h], totals[h], interpret)
      return tuple(totals)

    zeros = (jnp.zeros((block_w, block_c), jnp.float32),) * block_h
    sums = lax.fori_loop(0, kernel_ref.shape[1], add_column, zeros)
    if activation is None:
      for h, total in enumerate(sums):
        refs[0][h] = total.astype(x_bhwc.dtype)
      return
    bias_ref, y_ref, sum_ref, sumsq_ref = refs
    bias_1c = bias_ref[...].astype(jnp.float32)[None]
    column_wc = first_w + lax.broadcasted_iota(jnp.int32, (block_w, block_c), 0)
    sum_wc = sumsq_wc = zeros[0]
    for h, total in enumerate(sums):
      y_wc = (total + bias_1c).astype(x_bhwc.dtype)
      y_ref[h] = y_wc
      is_inside = (first_h + h < height) & (column_wc < width)
      a_wc = jnp.where(is_inside, activation(y_wc.astype(jnp.float32)), 0)
      sum_wc, sumsq_wc = sum_wc + a_wc, sumsq_wc + a_wc * a_wc
    sum_ref[...], sumsq_ref[...] = sum_wc.sum(0), sumsq_wc.sum(0)

  y_bhwc, *partials = pl.pallas_call(
    kernel,
    out_shape,
    grid=(batch * tiles_h * tiles_w * blocks_c,),
    in_specs=in_specs,
    out_specs=out_specs,
    interpret=interpret,
    compiler_params=pl_triton.CompilerParams(num_warps=blocks.warps, num_stages=1),
    name="depthwise_correlate",
  )(*inputs)
  return y_bhwc if activation is None else (y_bhwc, *(p.sum(0) for p in partials))


def kernel_gradient(
  x_bhwc: Array, g_bhwc: Array, kernel_size: tuple[int, ...], *, blocks: Blocks, interpret: bool
) -> Array:
  """Returns the float32 (rows, columns, c) sum over b, h, w of `g_bhwc` times the shifted `x_bhwc`.

  Args:
    x_bhwc, g_bhwc: the input and the gradient of the output, float32 or bfloat16.
    kernel_size: rows and columns; the padding is SAME.
    blocks: how the work is cut up; `blocks.programs` decides into how many shares the batch is.
    interpret: whether to run without a GPU, slowly.
  """
  batch, height, width, channels = x_bhwc.shape
  kernel_h, kernel_w = kernel_size
  low_h, low_w = (kernel_h - 1) // 2, (kernel_w - 1) // 2
  block_h, block_w, block_c = _fit(blocks, x_bhwc.shape)
  tiles_h, tiles_w = pl.cdiv(height, block_h), pl.cdiv(width, block_w)
  blocks_c = pl.cdiv(channels, block_c)
  block_j = min(blocks.kernel_columns, kernel_w)
  blocks_j = pl.cdiv(kernel_w, block_j)
  shares = _shares(batch, blocks.programs // (blocks_c * blocks_j))
  images = batch // shares

  # Programs that differ in the kernel's columns alone read the same maps: they are neighbours.
  def split(program: Array) -> tuple[Array, Array, Array]:
    rest = lax.div(program, blocks_j)
    return lax.div(rest, blocks_c), lax.rem(program, blocks_j), lax.rem(rest, blocks_c)

  def maps(program: Array) -> tuple:
    share, _, c = split(program)
    return share, 0, 0, c

  def weights(program: Array) -> tuple:
    share, j, c = split(program)
    return share, 0, j, c

  def kernel(x_ref: Any, g_ref: Any, sums_ref: Any) -> None:
    first_j = split(pl.program_id(0))[1] * block_j

    def add_tile(t: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
      image_h, tile_w = lax.div(t, tiles_w), lax.rem(t, tiles_w)
      image, tile_h = lax.div(image_h, tiles_h), lax.rem(image_h, tiles_h)
      first_h = tile_h * block_h if tiles_h > 1 else 0
      first_w, shape = tile_w * block_w, (block_w, block_c)
      g = [_load_row(g_ref, (image, first_h + h), first_w, shape) for h in range(block_h)]
      totals = list(sums)
      for r in _rows(block_h, height, low_h, kernel_h):
        for j in range(block_j):
          column = first_w + first_j + (j - low_w)
          x_wc = _load_row(x_ref, (image, first_h + (r - low_h)), column, shape)
          for h in range(max(0, r - kernel_h + 1), min(block_h, r + 1)):
            n = (r - h) * block_j + j
            totals[n] = _multiply_add(x_wc, g[h], totals[n], interpret)
      return tuple(totals)

    zeros = (jnp.zeros((block_w, block_c), jnp.float32),) * (kernel_h * block_j)
    sums = lax.fori_loop(0, images * tiles_h * tiles_w, add_tile, zeros)
    for n, total in enumerate(sums):
      sums_ref[n // block_j, n % block_j] = total.sum(0)

  partials = pl.pallas_call(
    kernel,
    varying_as(g_bhwc, (shares, kernel_h, kernel_w, channels), jnp.float32),
    grid=(shares * blocks_j * blocks_c,),
    in_specs=[pl.BlockSpec((images, height, width, block_c), maps)] * 2,
    out_specs=pl.BlockSpec((None, kernel_h, block_j, block_c), weights),
    interpret=interpret,
    compiler_params=pl_triton.CompilerParams(num_warps=blocks.warps, num_stages=1),
    name="depthwise_kernel_gradient",
  )(x_bhwc, g_bhwc)
  return partials.sum(0)


def _load_row(ref: Any, image_row: tuple, first_column: Any, shape: tuple[int, int]) -> Array:
  """Returns the float32 (columns, channels) piece of a row of `ref`, with zeros outside the map."""
  height, width = ref.shape[-3:-1]
  *image, row = image_row
  column_wc = first_column + lax.broadcasted_iota(jnp.int32, shape, 0)
  channel_wc = lax.broadcasted_iota(jnp.int32, shape, 1)
  is_inside = (column_wc >= 0) & (column_wc < width)
  if not isinstance(row, int):
    is_inside &= (row >= 0) & (row < height)
  piece = ref.at[(*image, row, column_wc, channel_wc)]
  return pl_triton.load(piece, mask=is_inside, other=0).astype(jnp.float32)


def _rows(block_h: int, height: int, low: int, kernel_h: int) -> range:
  """The input's rows for a tile, counted from `low` above it, without those known to be outside."""
  return range(low, low + height) if block_h == height else range(block_h + kernel_h - 1)


def _multiply_add(x: Array, y: Array, total: Array, interpret: bool) -> Array:
  """Returns `x * y + total` in one instruction.

  XLA compiles a product and a sum of Triton's into two, and so the arithmetic takes twice as long.
  """
  y = jnp.broadcast_to(y, x.shape)
  if interpret:
    return x * y + total
  (result,) = pl_triton.elementwise_inline_asm(
    "fma.rn.f32 $0, $1, $2, $3;",
    args=[x, y, total],
    constraints="=f,f,f,f",
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
  )
  return result


def _fit(blocks: Blocks, shape: tuple[int, ...]) -> tuple[int, int, int]:
  """Returns rows, columns and channels of a tile for maps of `shape`.

  Rows are spread evenly; columns and channels stay powers of two, which Triton demands.
  """
  _, height, width, channels = shape
  rows = pl.cdiv(height, pl.cdiv(height, blocks.rows))
  columns = min(blocks.columns, pl.next_power_of_2(width))
  return rows, columns, min(blocks.channels, pl.next_power_of_2(channels))


def _shares(batch: int, wanted: int) -> int:
  """Returns the smallest divisor of `batch` that is at least `wanted`, or else `batch`."""
  return next(n for n in range(1, batch + 1) if batch % n == 0 and (n >= wanted or n == batch))
