"""Depthwise convolution as products with banded matrices, in plain JAX, for matrix units.

A few rows of an image, about 128 positions, are the product of the rows around them and a matrix
whose diagonals are the taps of the channel's kernel: one batched product for all channels. It takes
more operations than the direct sum, on units that are much faster, and makes a copy of the feature
map in which the rows between two blocks are repeated. `pallas` does the same without the copy.
"""

import jax
from jax import Array, lax
import jax.numpy as jnp

ORDER = "cbp"

_POSITIONS = 128


def forward(x_cbhw: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_cbhw`, in its shape and dtype."""
  return _correlate(x_cbhw, kernel_hwc, [(size - 1) // 2 for size in kernel_hwc.shape[:2]])


def backward(x_cbhw: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_cbhw` and `kernel_hwc`, in their dtypes."""
  size = kernel_hwc.shape[:2]
  x_grad = _correlate(y_grad, kernel_hwc[::-1, ::-1], [n // 2 for n in size])
  low_h, low_w = ((n - 1) // 2 for n in size)
  x = _windows(x_cbhw, low_h, size[0] - 1)
  products = _einsum("cnk,cnm->ckm", x, _windows(y_grad, 0, 0))
  rows, columns = _selectors(x_cbhw.shape, size, low_w, products.dtype)
  sizes = rows.shape[1], columns.shape[1], rows.shape[2], columns.shape[2]
  products = products.reshape(-1, *sizes)
  kernel_grad = _einsum("icxX,jxX->ijc", _einsum("cyxYX,iyY->icxX", products, rows), columns)
  return x_grad, kernel_grad.astype(kernel_hwc.dtype)


def _correlate(x_cbhw: Array, kernel_hwc: Array, low: list[int]) -> Array:
  """The weighted sum of the maps, shifted with `low` rows and columns of padding before them."""
  channels, batch, height, width = x_cbhw.shape
  by_row, by_column = _selectors(x_cbhw.shape, kernel_hwc.shape[:2], low[1], x_cbhw.dtype)
  bands = _einsum("ijc,jxX->icxX", kernel_hwc.astype(x_cbhw.dtype), by_column).astype(x_cbhw.dtype)
  bands = _einsum("icxX,iyY->cyxYX", bands, by_row).astype(x_cbhw.dtype)
  windows = _windows(x_cbhw, low[0], kernel_hwc.shape[0] - 1)
  y = _einsum("cnk,ckm->cnm", windows, bands.reshape(channels, windows.shape[2], -1))
  rows = _rows(height, width) * _blocks(height, width)
  return y.astype(x_cbhw.dtype).reshape(channels, batch, rows, width)[:, :, :height]


def _rows(height: int, width: int) -> int:
  """Rows of the result of a product."""
  return max(1, min(height, _POSITIONS // width))


def _blocks(height: int, width: int) -> int:
  return -(-height // _rows(height, width))


def _windows(x_cbhw: Array, low: int, overlap: int) -> Array:
  """Blocks of rows and the `overlap` with the next, merged: [c, b * blocks, rows * w]."""
  channels, batch, height, width = x_cbhw.shape
  step, blocks = _rows(height, width), _blocks(height, width)
  rest = blocks * step + overlap - low - height
  padded = jnp.pad(x_cbhw, ((0, 0), (0, 0), (low, rest), (0, 0)))
  windows = [padded[:, :, n * step :][:, :, : step + overlap] for n in range(blocks)]
  return jnp.stack(windows, 2).reshape(channels, batch * blocks, (step + overlap) * width)


def _selectors(
  shape: tuple[int, ...], kernel_size: tuple[int, ...], low: int, dtype: jax.typing.DTypeLike
) -> tuple[Array, Array]:
  """1 where a tap leads from an output to an input: [tap, input, output] of rows and columns."""
  height, width = shape[2:]
  rows = _rows(height, width)
  return (
    _shifted(kernel_size[0], rows + kernel_size[0] - 1, rows, 0).astype(dtype),
    _shifted(kernel_size[1], width, width, low).astype(dtype),
  )


def _shifted(taps: int, inputs: int, outputs: int, low: int) -> Array:
  tap, i, o = (lax.broadcasted_iota(jnp.int32, (taps, inputs, outputs), axis) for axis in range(3))
  return i - o == tap - low


def _einsum(text: str, *arrays: Array) -> Array:
  """In float32; products of float32 arrays are not rounded to the units' bfloat16."""
  precision = lax.Precision.HIGHEST
  return jnp.einsum(text, *arrays, precision=precision, preferred_element_type=jnp.float32)
