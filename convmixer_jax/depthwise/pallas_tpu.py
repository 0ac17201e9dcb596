"""Depthwise convolution for TPUs as products with banded matrices on the matrix units, in Pallas.

The positions of a channel's feature map are merged, p = row * width + column, and cut into blocks
of 128, the lanes of a TPU. A block of outputs, [b, 128], is the sum of products of a few blocks of
inputs with [128, 128] matrices. Such a matrix is constant along its diagonals, since a tap of the
kernel is a constant distance of p, except where the distance would lead to another row of the map:
there it is 0. The kernel makes the matrices in place, by rolling each row of a matrix one lane
further than the row above. The kernel gradient is the sums along the diagonals of the products
x^T g. That takes up to 10 times the operations of the direct sum, on units that are 100 times as
fast.

Nothing of this has been run on a TPU: its sizes are chosen by the compiler's account.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

ORDER = "cbhw"

_LANES, _SUBLANES = 128, 8
_BLOCK_BYTES = 2**20  # of a feature map, for each step of the grid; four are in memory at a time
_UNROLLED = 32  # blocks of positions whose instructions are interleaved


class _Bands(NamedTuple):
  """Where the taps of a kernel are in banded matrices between blocks of positions."""

  height: int
  width: int
  kernel_h: int
  kernel_w: int
  top: int  # rows and columns of the kernel before its centre
  left: int

  @property
  def blocks(self) -> int:
    return pl.cdiv(self.height * self.width, _LANES)

  def inputs(self, block: int) -> range:
    """The blocks that the outputs of a block depend on."""
    first_row = block * _LANES // self.width - self.top
    last_row = (block * _LANES + _LANES - 1) // self.width + self.kernel_h - 1 - self.top
    last = min(self.height * self.width, (last_row + 1) * self.width) - 1
    return range(max(0, first_row * self.width) // _LANES, last // _LANES + 1)

  @property
  def offsets(self) -> range:
    """The distances from a block of outputs to its blocks of inputs."""
    ranges = [(self.inputs(q)[0] - q, self.inputs(q)[-1] - q) for q in range(self.blocks)]
    return range(min(first for first, _ in ranges), max(last for _, last in ranges) + 1)

  @property
  def lanes(self) -> int:
    """The number of diagonals: lane e has those with p_out - p_in = e - lanes of the last offset."""
    return (len(self.offsets) + 1) * _LANES

  def groups(self) -> dict[int, list[int]]:
    """Blocks whose first position is in the same column, so that they have the same matrices."""
    groups: dict[int, list[int]] = {}
    for block in range(self.blocks):
      groups.setdefault(block * _LANES % self.width, []).append(block)
    return groups

  @property
  def columns(self) -> int:
    """Columns of the kernel that can be inside the map, counted from the last."""
    return min(self.left, self.width - 1) + self.right + 1

  @property
  def right(self) -> int:
    return min(self.kernel_w - 1 - self.left, self.width - 1)

  @property
  def parts(self) -> int:
    """Taps a whole width apart share a diagonal: that many sets of diagonals have all of them."""
    return pl.cdiv(self.columns, self.width)

  def _paddings(self) -> Iterator[tuple[int, int]]:
    """Lanes before and after the taps of each part; less than 0 where they cannot be inside."""
    for part in range(self.parts):
      first = self.right - part * self.width + (self.kernel_h - 1 - self.top) * self.width
      before = (self.offsets[-1] + 1) * _LANES - first
      yield before, self.lanes - before - self.kernel_h * self.width

  def diagonals(self, kernel_hwc: Array) -> Array:
    """The values of the diagonals, float32 [c, parts, lanes]."""
    last = self.left + self.right
    taps = kernel_hwc.astype(jnp.float32)[::-1, last - self.columns + 1 : last + 1][:, ::-1]
    taps = taps.transpose(2, 0, 1)
    taps = jnp.pad(taps, ((0, 0), (0, 0), (0, self.parts * self.width - self.columns)))
    zero = jnp.zeros((), jnp.float32)
    parts = [
      lax.pad(taps[:, :, n * self.width :][:, :, : self.width].reshape(len(taps), -1), zero, pads)
      for n, pads in enumerate(((0, 0, 0), (*pad, 0)) for pad in self._paddings())
    ]
    return jnp.stack(parts, 1)

  def taps(self, diagonals: Array) -> Array:
    """The inverse of `diagonals`: (rows, columns, c), 0 for the taps that are never inside."""
    zero = jnp.zeros((), jnp.float32)
    parts = [
      lax.pad(diagonals[:, n], zero, ((0, 0, 0), (-before, -after, 0))).reshape(
        len(diagonals), self.kernel_h, self.width
      )
      for n, (before, after) in enumerate(self._paddings())
    ]
    taps = jnp.concatenate(parts, 2)[:, :, : self.columns].transpose(1, 2, 0)[::-1, ::-1]
    last = self.left + self.right
    around = (last - self.columns + 1, self.kernel_w - 1 - last)
    return jnp.pad(taps, ((0, 0), around, (0, 0)))

  def masks(self, output: int, offset: int) -> list[Array]:
    """Of each part, which elements [p_in, p_out] stay in their row, for a block of outputs."""

    def column(block: int, shape: tuple[int, int]) -> Array:
      position = lax.broadcasted_iota(jnp.int32, shape, shape.index(_LANES))
      return lax.rem(position + block * _LANES % self.width, self.width)

    step = column(output + offset, (_LANES, 1)) - column(output, (1, _LANES))
    return [
      (step <= self.right - n * self.width) & (step > self.right - (n + 1) * self.width)
      for n in range(self.parts)
    ]


def forward(x_cbhw: Array, kernel_hwc: Array, *, interpret: bool = False) -> Array:
  """The convolution of `x_cbhw`, in its shape and dtype; `interpret` runs it on CPU, slowly."""
  low_h, low_w = ((size - 1) // 2 for size in kernel_hwc.shape[:2])
  return correlate(x_cbhw, kernel_hwc, low=(low_h, low_w), interpret=interpret)


def backward(
  x_cbhw: Array, kernel_hwc: Array, y_grad: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
  """The gradients with respect to `x_cbhw` and `kernel_hwc`, in their dtypes."""
  low_h, low_w = (size // 2 for size in kernel_hwc.shape[:2])
  mirrored = kernel_hwc[::-1, ::-1]
  x_grad = correlate(y_grad, mirrored, low=(low_h, low_w), interpret=interpret)
  kernel_grad = kernel_gradient(x_cbhw, y_grad, kernel_hwc.shape[:2], interpret=interpret)
  return x_grad, kernel_grad.astype(kernel_hwc.dtype)


def is_supported(x_cbhw: Any, kernel_hwc: Any) -> bool:
  """Whether the kernels support feature maps and kernels of these types."""
  return (
    all(isinstance(size, int) and size > 0 for size in x_cbhw.shape)  # not symbolic
    and x_cbhw.shape[2] * x_cbhw.shape[3] <= 64 * 64  # 16 images of a channel are in memory
    and all(size <= 15 for size in kernel_hwc.shape[:2])
  )


def correlate(
  x_cbhw: Array, kernel_hwc: Array, *, low: tuple[int, int], interpret: bool = False
) -> Array:
  """Returns the (c, b, h, w) weighted sum of the shifted feature maps, in the dtype of `x_cbhw`.

  Args:
    x_cbhw: bfloat16, or float32, whose products are exact to about 1e-6. Sums are in float32.
    kernel_hwc: rounded to the dtype of `x_cbhw`.
    low: rows and columns of zero padding at the top and left; the rest is at the bottom and right.
    interpret: run without a TPU, slowly.
  """
  channels, batch, height, width = x_cbhw.shape
  bands = _Bands(height, width, *kernel_hwc.shape[:2], *low)
  blocks = _Blocks(x_cbhw, bands.blocks)

  def kernel(diagonals_ref: Any, x_ref: Any, y_ref: Any) -> None:
    masks = {(q, d): bands.masks(q, d) for q in bands.groups() for d in bands.offsets}

    def convolve(c: Array) -> None:
      for first, group in bands.groups().items():
        matrices = {
          d: _banded(diagonals_ref, c, bands, d, masks[first, d], interpret).astype(x_ref.dtype)
          for d in {q_in - q for q in group for q_in in bands.inputs(q)}
        }
        for q in group:
          y = sum(
            _dot(blocks.load(x_ref, c, q_in), matrices[q_in - q], ((1,), (0,)))
            for q_in in bands.inputs(q)
          )
          y_ref[c, :, q * _LANES : (q + 1) * _LANES] = y.astype(y_ref.dtype)

    blocks.for_each_channel(convolve)

  y_cbp = pl.pallas_call(
    kernel,
    _varying_as(x_cbhw, (channels, batch, height * width), x_cbhw.dtype),
    grid=blocks.grid,
    in_specs=[blocks.diagonals(bands), blocks.maps()],
    out_specs=blocks.maps(),
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    name="depthwise_banded",
  )(bands.diagonals(kernel_hwc), x_cbhw.reshape(channels, batch, height * width))
  return y_cbp.reshape(x_cbhw.shape)


def kernel_gradient(
  x_cbhw: Array, g_cbhw: Array, kernel_size: tuple[int, ...], *, interpret: bool = False
) -> Array:
  """Returns the float32 (rows, columns, c) sum over b, h, w of `g_cbhw` times the shifted `x_cbhw`.

  Args:
    x_cbhw, g_cbhw: the input and the gradient of the output, in one dtype.
    kernel_size: rows and columns; the padding is SAME.
    interpret: run without a TPU, slowly.
  """
  channels, batch, height, width = x_cbhw.shape
  bands = _Bands(height, width, *kernel_size, *((size - 1) // 2 for size in kernel_size))
  blocks = _Blocks(x_cbhw, bands.blocks)

  def kernel(x_ref: Any, g_ref: Any, diagonals_ref: Any, sums_ref: Any) -> None:
    masks = {(q, d): bands.masks(q, d) for q in bands.groups() for d in bands.offsets}

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
      sums_ref[...] = jnp.zeros_like(sums_ref)

    def correlate(c: Array) -> None:
      for first, group in bands.groups().items():
        for d in bands.offsets:
          pairs = [(q + d, q) for q in group if q + d in bands.inputs(q)]
          if not pairs:
            continue
          x = jnp.concatenate([blocks.load(x_ref, c, q, rows=True) for q, _ in pairs])
          g = jnp.concatenate([blocks.load(g_ref, c, q, rows=True) for _, q in pairs])
          product = _dot(x, g, ((0,), (0,)))
          for part, mask in enumerate(masks[first, d]):
            for n, sums in enumerate(_diagonal_sums(product, mask), bands.offsets[-1] - d):
              sums_ref[part, n, pl.ds(c * _SUBLANES, _SUBLANES)] += sums

    blocks.for_each_channel(correlate)

    @pl.when(pl.program_id(1) == blocks.grid[1] - 1)
    def _() -> None:
      for part in range(bands.parts):
        diagonals = 0
        for row in range(_SUBLANES):
          rows = pl.ds(row, blocks.channels, _SUBLANES)
          lanes = [sums_ref.at[part, n][rows] for n in range(bands.lanes // _LANES)]
          diagonals += pltpu.roll(jnp.concatenate(lanes, 1), -row % bands.lanes, 1)
        diagonals_ref[:, part] = diagonals

  shape = (channels, bands.parts, bands.lanes)
  diagonals = pl.pallas_call(
    kernel,
    _varying_as(g_cbhw, shape, jnp.float32),
    grid=blocks.grid,
    in_specs=[blocks.maps()] * 2,
    out_specs=blocks.diagonals(bands),
    scratch_shapes=[
      pltpu.VMEM(
        (bands.parts, bands.lanes // _LANES, blocks.channels * _SUBLANES, _LANES), jnp.float32
      )
    ],
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    name="depthwise_banded_gradient",
  )(*(a.reshape(channels, batch, height * width) for a in (x_cbhw, g_cbhw)))
  return bands.taps(diagonals)


class _Blocks:
  """The part of the feature maps that one step of a kernel's grid works on."""

  def __init__(self, x_cbhw: Array, lane_blocks: int) -> None:
    channels, self.images, height, width = x_cbhw.shape
    self.lane_blocks, self.positions = lane_blocks, height * width
    image = lane_blocks * _LANES * x_cbhw.dtype.itemsize
    self.unrolled = min(max(_UNROLLED // lane_blocks, 1), 4, channels)
    self.batch, most = self.images, _BLOCK_BYTES // (self.unrolled * image)
    if self.images > most:
      self.batch = max(most // 16, 1) * 16
    steps = max(most // self.batch, 1)
    self.channels = self.unrolled * min(steps, pl.cdiv(channels, self.unrolled), 4)
    self.grid = (pl.cdiv(channels, self.channels), pl.cdiv(self.images, self.batch))

  def maps(self) -> pl.BlockSpec:
    """Positions and images beyond the map are whatever is in memory there."""
    shape = (self.channels, self.batch, self.lane_blocks * _LANES)
    return pl.BlockSpec(shape, lambda c, b: (c, b, 0))

  def diagonals(self, bands: _Bands) -> pl.BlockSpec:
    return pl.BlockSpec((self.channels, bands.parts, bands.lanes), lambda c, b: (c, 0, 0))

  def load(self, ref: Any, c: Array, block: int, rows: bool = False) -> Array:
    """A block of positions, [b, 128], with 0 beyond the map, and with `rows` beyond the batch."""
    x = ref[c, :, block * _LANES : (block + 1) * _LANES]
    is_inside = []
    if (block + 1) * _LANES > self.positions:
      lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
      is_inside.append(lane < self.positions - block * _LANES)
    if rows and self.images % self.batch:
      row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
      is_inside.append(row < self.images - pl.program_id(1) * self.batch)
    if not is_inside:
      return x
    mask = functools.reduce(jnp.logical_and, is_inside)
    return jnp.where(mask, x.astype(jnp.float32), 0).astype(x.dtype)

  def for_each_channel(self, function: Callable[[Array], None]) -> None:
    @pl.loop(0, self.channels // self.unrolled)
    def _(n: Array) -> None:
      for c in range(self.unrolled):
        function(n * self.unrolled + c)


def _dot(a: Array, b: Array, axes: tuple) -> Array:
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(
    a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32
  )


def _banded(
  diagonals_ref: Any, c: Array, bands: _Bands, offset: int, masks: list[Array], interpret: bool
) -> Array:
  """The [p_in, p_out] matrix from the block of inputs at `offset` to a block of outputs."""
  lane, matrix = (bands.offsets[-1] - offset) * _LANES, jnp.zeros((_LANES, _LANES), jnp.float32)
  for part, mask in enumerate(masks):
    row = diagonals_ref[c, pl.ds(part, 1), lane : lane + 2 * _LANES]
    rows = jnp.broadcast_to(row, (_LANES, 2 * _LANES))
    rolled = _interpreted_roll(rows) if interpret else _roll(rows)
    matrix = jnp.where(mask, rolled[:, _LANES:], matrix)
  return matrix


def _roll(rows: Array) -> Array:
  """Each row one lane further to the right than the row above."""
  return pltpu.roll(rows, 0, 1, stride=1, stride_axis=0)


def _interpreted_roll(rows: Array) -> Array:
  """The same; JAX would interpret `_roll` as one operation for each row, which takes minutes."""
  row, lane = (lax.broadcasted_iota(jnp.int32, rows.shape, axis) for axis in (0, 1))
  return jnp.take_along_axis(rows, (lane - row) % rows.shape[1], 1)


def _diagonal_sums(product: Array, mask: Array) -> tuple[Array, Array]:
  """Sums along the diagonals of a [p_in, p_out] product; row n is still n lanes too far right.

  Two blocks of lanes, [8, 128]: p_out - p_in from -128 on, and from 0 on.
  """
  product = jnp.where(mask, product, 0)
  zeros, sums = jnp.zeros((_SUBLANES, _LANES), jnp.float32), 0
  for row in range(0, _LANES, _SUBLANES):
    wide = jnp.concatenate([zeros, product[row : row + _SUBLANES]], 1)
    sums += pltpu.roll(wide, (2 * _LANES - row) % (2 * _LANES), 1)
  return sums[:, :_LANES], sums[:, _LANES:]


def _varying_as(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  """The type of a result that, under `shard_map`, varies over the mesh axes of `x`."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
