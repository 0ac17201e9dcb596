"""Depthwise convolution for CPU as a sum of k*k shifted feature maps, without a convolution op.

XLA:CPU runs a grouped convolution 10 to 100 times slower than the same sum written out, which it
fuses into one parallel, vectorised loop. That loop is fast only for channel-major (c, b, h, w)
feature maps: the k*k weights of a channel are then scalars in registers, its feature map stays in
the cache, and vectors run along the width. If XLA fused a transpose with the sum, the sum would run
in the transposed order, several times slower; the functions that are not inlined prevent that.
"""

from collections.abc import Iterable

from jax import Array, lax
import jax.numpy as jnp

from convmixer_jax.depthwise.no_inline import not_inlined

ORDER = "cbhw"


def forward(x_cbhw: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_cbhw`, in its shape and dtype."""
  return _correlate(x_cbhw, kernel_hwc)


def backward(x_cbhw: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_cbhw` and `kernel_hwc`, in their dtypes."""
  x_grad = _correlate(y_grad, kernel_hwc[::-1, ::-1], mirror=True)
  kernel_grad = _kernel_grad(x_cbhw, y_grad, kernel_size=kernel_hwc.shape[:2])
  return x_grad, kernel_grad.astype(kernel_hwc.dtype)


def _pad(x_cbhw: Array, kernel_size: tuple[int, int], mirror: bool = False) -> Array:
  """Returns `x_cbhw` in float32 with SAME padding.

  `mirror` puts the extra row and column of an even kernel at the top and left.
  """
  low = [(size - 1) // 2 for size in kernel_size]
  high = [size // 2 for size in kernel_size]
  if mirror:
    low, high = high, low
  zero = jnp.zeros((), jnp.float32)
  return lax.pad(
    x_cbhw.astype(jnp.float32), zero, [(0, 0, 0), (0, 0, 0), *zip(low, high, (0, 0), strict=True)]
  )


@not_inlined
def _padded(x_cbhw: Array, *, kernel_size: tuple[int, int], mirror: bool) -> Array:
  return _pad(x_cbhw, kernel_size, mirror)


@not_inlined
def _padded_maps(x_cbhw: Array, start: Array, *, maps: int, kernel_size: tuple[int, int]) -> Array:
  """Returns `maps` consecutive images of the batch from `start`, padded."""
  return _pad(lax.dynamic_slice_in_dim(x_cbhw, start, maps, axis=1), kernel_size)


def _correlate(x_cbhw: Array, kernel_hwc: Array, *, mirror: bool = False) -> Array:
  """Returns the (c, b, h, w) weighted sum of the k*k shifted feature maps."""
  channels, rest = x_cbhw.shape[0], x_cbhw.shape[1:]
  block = _channels_per_block(x_cbhw.shape, kernel_hwc.shape)
  if block == channels:
    return _correlate_block(x_cbhw, kernel_hwc, mirror=mirror)
  x_blocks = x_cbhw.reshape(channels // block, block, *rest)
  kernel_blocks = jnp.moveaxis(
    kernel_hwc.reshape(*kernel_hwc.shape[:2], channels // block, block), 2, 0
  )
  y_blocks = lax.map(
    lambda block: _correlate_block(*block, mirror=mirror), (x_blocks, kernel_blocks)
  )
  return y_blocks.reshape(x_cbhw.shape)


@not_inlined
def _correlate_block(x_cbhw: Array, kernel_hwc: Array, *, mirror: bool) -> Array:
  (rows, columns, channels), (height, width) = kernel_hwc.shape, x_cbhw.shape[2:]
  padded = _padded(x_cbhw, kernel_size=(rows, columns), mirror=mirror)
  weight = kernel_hwc.astype(jnp.float32).reshape(rows, columns, channels, 1, 1, 1)
  terms = (
    padded[:, :, i : i + height, j : j + width] * weight[i, j]
    for i in range(rows)
    for j in range(columns)
  )
  return _sum(terms).astype(x_cbhw.dtype)


def _channels_per_block(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> int:
  """Returns the largest divisor of the channel count whose padded feature maps take at most 8 MiB.

  A larger buffer would be allocated from the operating system on every call, and faulting in its
  pages costs as much as the arithmetic. A block also stays in the last-level cache.
  """
  channels, batch, height, width = x_shape
  if not isinstance(batch, int):  # a symbolic size from jax.export
    return channels
  map_bytes = 4 * batch * (height + kernel_shape[0] - 1) * (width + kernel_shape[1] - 1)
  return next(
    n for n in range(channels, 0, -1) if channels % n == 0 and (n * map_bytes <= 2**23 or n == 1)
  )


@not_inlined
def _kernel_grad(x_cbhw: Array, g_cbhw: Array, *, kernel_size: tuple[int, int]) -> Array:
  """Returns the float32 (rows, columns, c) sum over b, h, w of `g_cbhw` times `x_cbhw` shifted by
  each tap.

  Loops over the batch with one (c, rows, w) sum per column offset: both factors of every product
  are contiguous along w, and nothing is copied k*k times.
  """
  (rows, columns), (channels, batch, height, width) = kernel_size, g_cbhw.shape
  group = _maps_per_step(batch, height)

  def step(t: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
    x = _padded_maps(x_cbhw, t * group, maps=group, kernel_size=kernel_size)
    g = _padded_maps(g_cbhw, t * group, maps=group, kernel_size=(1, 1))
    return tuple(
      total
      + _sum(
        x[:, m, r : r + rows, j : j + width] * g[:, m, r, None]
        for m in range(group)
        for r in range(height)
      )
      for j, total in enumerate(sums)
    )

  # Under shard_map the sums must vary over the same mesh axes as g, hence full_like.
  zeros = lax.full_like(g_cbhw, 0, jnp.float32, shape=(channels, rows, width))
  if batch == 0:
    return jnp.stack([zeros.sum(-1)] * columns).transpose(2, 0, 1)
  sums = lax.fori_loop(0, batch // group, step, (zeros,) * columns)
  return jnp.stack([total.sum(-1) for total in sums]).transpose(2, 0, 1)


def _maps_per_step(batch: int, height: int) -> int:
  """Returns the smallest divisor of `batch` whose images have >= 16 rows in total, or `batch`."""
  if not isinstance(batch, int):  # a symbolic size from jax.export
    return 1
  return next((n for n in range(1, batch) if batch % n == 0 and n * height >= 16), max(batch, 1))


def _sum(terms: Iterable[Array]) -> Array:
  """Adds `terms` in four independent chains, to hide the latency of the additions."""
  chains: list[Array | None] = [None] * 4
  for n, term in enumerate(terms):
    previous = chains[n % 4]
    chains[n % 4] = term if previous is None else previous + term
  first, *rest = [chain for chain in chains if chain is not None]
  return sum(rest, first)
