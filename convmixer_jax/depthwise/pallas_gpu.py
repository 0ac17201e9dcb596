"""Depthwise convolution for NVIDIA GPUs: direct sums in registers, written in Pallas (Triton).

The design of the kernels for channels-last maps, and why:

- Channels are last and contiguous, so that the lanes of a warp read whole sectors whatever the
  kernel's shift, and no element ever moves between lanes. A program computes a tile of rows x
  columns x channels; Triton spreads (columns, channels) over the threads, and each row of the tile
  is an accumulator of its own, in a Python list, because Triton cannot slice what is in registers.
- An element of the input is loaded once for each kernel *column* and used for all kernel rows: row
  h of the input is added into up to k accumulators. That is k * (rows + k - 1) loads instead of
  k * k * rows, 7 times fewer for k = 9 and 32 rows. With one load for each product the first-level
  cache and the conversion from bfloat16 would bound the time, not the arithmetic.
- The kernel columns are a loop, the kernel rows are unrolled: everything unrolled would be some ten
  thousand instructions, more than the instruction cache holds.
- Borders are masked loads of zeros, not a padded copy of the input, which would cost a pass.
- The input gradient is the same kernel with mirrored weights and padding. The kernel gradient
  accumulates the k rows of some kernel columns in the same way, over a share of the batch; the
  shares are added afterwards, so that equal inputs give equal bits: no atomics.

Channel-major maps in bfloat16 go to the tensor cores instead, see `pallas_toeplitz`.

All sums are in float32. What the kernels do not support goes to `xla`, with one log line for each
shape. On CPU the kernels are interpreted: slow, for tests. JAX announces the end of Pallas's Triton
backend, with a DeprecationWarning from 0.11 on when this is lowered for a GPU.
"""

from collections.abc import Callable
import functools
import logging
import math
from typing import Any, NamedTuple

import jax
from jax import Array, lax
import jax.numpy as jnp

from convmixer_jax.depthwise import xla

_log = logging.getLogger(__name__)


class Blocks(NamedTuple):
  """How the work is cut into programs.

  `rows`, `columns` and `channels` are a tile's; the last two are powers of two, and a smaller map
  gets a smaller tile. A thread has `columns * channels / (32 * warps)` elements of each row.
  """

  rows: int
  columns: int
  channels: int
  warps: int
  kernel_columns: int = 1  # of the kernel gradient: how many of them one program sums
  programs: int = 1024  # of the kernel gradient: the batch is cut into shares until there are these


def choose_blocks(
  kernel_size: int, height: int, width: int, itemsize: int
) -> tuple[Blocks, Blocks]:
  """Returns the blocks of `correlate` and of `kernel_gradient`.

  Estimates which await measurement on a GPU: two elements a thread of each row and at most 128
  registers without spills, as ptxas reports for sm_90a; whole cache lines of 128 bytes; maps of up
  to 32 rows in one tile, so that no row is read twice and none outside the map is computed.
  """
  columns, channels = (16 if width > 8 else 8), 128 // itemsize
  warps = columns * channels // 64
  rows = 32 if height <= 32 else 16
  kernel_columns = 3 if kernel_size <= 5 else 2 if kernel_size <= 9 else 1
  return (
    Blocks(rows, columns, channels, warps),
    Blocks(16, columns, channels, warps, kernel_columns),
  )


def varying_as(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  """Returns the type of a result that, under `shard_map`, varies over the mesh axes of `x`."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def forward(x: Array, kernel_hwc: Array, layout: str) -> Array:
  """Returns the map of `x`'s shape and dtype; `layout` names the dimensions of `x`, like 'bhwc'."""
  if not _is_supported(x, kernel_hwc, layout):
    return xla.forward(x, kernel_hwc, layout)

  def kernel(x: Array, kernel_hwc: Array, interpret: bool) -> Array:
    if _is_for_tensor_cores(x, layout):
      from convmixer_jax.depthwise import pallas_toeplitz

      low_h, low_w = ((size - 1) // 2 for size in kernel_hwc.shape[:2])
      return pallas_toeplitz.correlate(x, kernel_hwc, low=(low_h, low_w), interpret=interpret)
    x_bhwc = _transpose(x, layout, "bhwc")
    return _transpose(correlate(x_bhwc, kernel_hwc, interpret=interpret), "bhwc", layout)

  return _on_platform(kernel, functools.partial(xla.forward, layout=layout), x, kernel_hwc)


def backward(x: Array, kernel_hwc: Array, y_grad: Array, layout: str) -> tuple[Array, Array]:
  """Returns the gradients of `x` and `kernel_hwc`, in their dtypes."""
  if not _is_supported(x, kernel_hwc, layout):
    return xla.backward(x, kernel_hwc, y_grad, layout)

  def kernel(x: Array, kernel_hwc: Array, y_grad: Array, interpret: bool) -> tuple[Array, Array]:
    if _is_for_tensor_cores(x, layout):
      from convmixer_jax.depthwise import pallas_toeplitz

      low_h, low_w = (size // 2 for size in kernel_hwc.shape[:2])
      x_grad = pallas_toeplitz.correlate(
        y_grad, kernel_hwc[::-1, ::-1], low=(low_h, low_w), interpret=interpret
      )
      kernel_grad = pallas_toeplitz.kernel_gradient(
        x, y_grad, kernel_hwc.shape[:2], interpret=interpret
      )
      return x_grad, kernel_grad.astype(kernel_hwc.dtype)
    x_bhwc, g_bhwc = (_transpose(a, layout, "bhwc") for a in (x, y_grad))
    x_grad = correlate(g_bhwc, kernel_hwc, mirror=True, interpret=interpret)
    kernel_grad = kernel_gradient(x_bhwc, g_bhwc, kernel_hwc.shape[:2], interpret=interpret)
    return _transpose(x_grad, "bhwc", layout), kernel_grad.astype(kernel_hwc.dtype)

  otherwise = functools.partial(xla.backward, layout=layout)
  return _on_platform(kernel, otherwise, x, kernel_hwc, y_grad)


def forward_with_statistics(
  x_bhwc: Array, kernel_hwc: Array, bias_c: Array, activation: str
) -> tuple[Array, Array, Array]:
  """The convolution with its bias, and what BatchNorm needs of the activation, in one pass.

  Unfused, the bias, the activation and each of the two statistics are passes over memory that cost
  as much as the arithmetic. This has no derivative of its own.

  Args:
    x_bhwc, kernel_hwc: as in `depthwise_conv`.
    bias_c: float32 or bfloat16.
    activation: "gelu" (exact) or "relu".

  Returns:
    The pre-activation, the biased map in `x_bhwc`'s dtype, and the float32 sum and sum of squares
    over b, h, w of the activation of that (rounded) map, both of shape (c,).

  Raises:
    ValueError: an unknown activation.
  """
  if activation not in _ACTIVATIONS:
    raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")

  def unfused(x_bhwc: Array, kernel_hwc: Array, bias_c: Array) -> tuple[Array, Array, Array]:
    y_bhwc = xla.forward(x_bhwc, kernel_hwc, "bhwc").astype(jnp.float32)
    y_bhwc = y_bhwc + jnp.broadcast_to(bias_c.astype(jnp.float32), y_bhwc.shape)
    y_bhwc = y_bhwc.astype(x_bhwc.dtype)
    a_bhwc = _ACTIVATIONS[activation](y_bhwc.astype(jnp.float32))
    return y_bhwc, a_bhwc.sum((0, 1, 2)), (a_bhwc * a_bhwc).sum((0, 1, 2))

  if not _is_supported(x_bhwc, kernel_hwc, "bhwc"):
    return unfused(x_bhwc, kernel_hwc, bias_c)
  fused = functools.partial(correlate, activation=_ACTIVATIONS[activation])
  return _on_platform(
    lambda *args, interpret: fused(*args, interpret=interpret), unfused, x_bhwc, kernel_hwc, bias_c
  )


def _gelu(x: Array) -> Array:
  """The exact GELU to 4e-7, for float32: x times the normal distribution's integral.

  Pallas knows neither erf nor erfc on Triton. This is Abramowitz and Stegun's approximation of
  erfc, 7.1.26, for the tail, which nothing is subtracted from.
  """
  z = jnp.abs(x) * math.sqrt(0.5)
  t = 1 / (1 + 0.3275911 * z)
  polynomial = jnp.full_like(x, 1.061405429)
  for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
    polynomial = polynomial * t + coefficient
  tail = 0.5 * polynomial * t * jnp.exp(-z * z)
  return x * jnp.where(x < 0, tail, 1 - tail)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": _gelu, "relu": jax.nn.relu}


def correlate(
  x_bhwc: Array,
  kernel_hwc: Array,
  bias_c: Array | None = None,
  *,
  mirror: bool = False,
  activation: Callable[[Array], Array] | None = None,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> Any:
  """`pallas_kernels.correlate` with SAME padding, and with `choose_blocks` for `blocks=None`.

  `mirror` flips the kernel and the padding, for the gradient of the input.
  """
  from convmixer_jax.depthwise import pallas_kernels  # imports Pallas: up to 0.4 s

  low_h, low_w = ((size - 1) // 2 for size in kernel_hwc.shape[:2])
  if mirror:
    low_h, low_w = (size // 2 for size in kernel_hwc.shape[:2])
    kernel_hwc = kernel_hwc[::-1, ::-1]
  if blocks is None:
    _, height, width, _ = x_bhwc.shape
    blocks, _ = choose_blocks(kernel_hwc.shape[0], height, width, x_bhwc.dtype.itemsize)
  return pallas_kernels.correlate(
    x_bhwc,
    kernel_hwc,
    bias_c,
    low=(low_h, low_w),
    activation=activation,
    blocks=blocks,
    interpret=interpret,
  )


def kernel_gradient(
  x_bhwc: Array,
  g_bhwc: Array,
  kernel_size: tuple[int, ...],
  *,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> Array:
  """`pallas_kernels.kernel_gradient`, with `choose_blocks` for `blocks=None`."""
  from convmixer_jax.depthwise import pallas_kernels  # imports Pallas: up to 0.4 s

  if blocks is None:
    _, height, width, _ = x_bhwc.shape
    _, blocks = choose_blocks(kernel_size[0], height, width, x_bhwc.dtype.itemsize)
  return pallas_kernels.kernel_gradient(
    x_bhwc, g_bhwc, kernel_size, blocks=blocks, interpret=interpret
  )


def _is_for_tensor_cores(x: Array, layout: str) -> bool:
  """Whether the maps are such that no transpose is needed, and lose nothing in bfloat16."""
  return layout == "cbhw" and x.dtype == jnp.bfloat16


def _transpose(x: Array, source: str, target: str) -> Array:
  return x.transpose([source.index(letter) for letter in target])


def _on_platform(kernel: Callable[..., Any], otherwise: Callable[..., Any], *args: Array) -> Any:
  """Calls `kernel` where the computation is lowered for CUDA, or interpreted for CPU."""
  return lax.platform_dependent(
    *args,
    cpu=functools.partial(kernel, interpret=True),
    cuda=functools.partial(kernel, interpret=False),
    default=otherwise,
  )


def _is_supported(x: Array, kernel_hwc: Array, layout: str) -> bool:
  """Whether the kernels take these shapes and dtypes; logs once for each that they do not."""
  sizes = dict(zip(layout, x.shape, strict=True))
  dtypes = {jnp.dtype(a.dtype) for a in (x, kernel_hwc)}
  is_supported = (
    all(isinstance(size, int) and size > 0 for size in x.shape)  # no symbolic size of jax.export
    and all(8 <= sizes[letter] <= 64 for letter in "hw")
    and all(size <= 15 for size in kernel_hwc.shape[:2])
    and dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}
  )
  if not is_supported:
    _log_fallback(str(x.shape), kernel_hwc.shape[:2], layout, str(sorted(map(str, dtypes))))
  return is_supported


@functools.cache
def _log_fallback(shape: str, kernel_size: tuple[int, ...], layout: str, dtypes: str) -> None:
  _log.info("maps %s %s, kernel %s, %s: no Pallas kernel, xla", layout, shape, kernel_size, dtypes)
