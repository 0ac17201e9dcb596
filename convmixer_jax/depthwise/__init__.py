"""Depthwise convolution: stride 1, SAME padding, one kernel per channel.

`depthwise_conv` takes (batch, height, width, channels) maps, `depthwise_conv_cbhw` channel-major
ones, which spares the two transposes that the CPU backend otherwise needs. Both have their own
gradient, so that the forward pass, the input gradient and the kernel gradient each use what is
fastest for them; both work under `jit`, `vmap`, `shard_map` and `jax.export`, and `grad` of any
order. Forward-mode differentiation (`jvp`) needs `implementation="xla"`, which leaves all
derivatives to JAX; with the others it raises a TypeError that says so.

Dimension letters: b batch, h height, w width, c channels.
"""

from functools import partial
from typing import Any

import jax
from jax import Array, lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from convmixer_jax.depthwise import native, pallas_gpu, taps, xla
from convmixer_jax.depthwise.own_gradient import own_gradient

# A backend is a module with forward(x, kernel, layout) -> y and backward(x, kernel, y_grad, layout)
# -> (x_grad, kernel_grad). A new one, for instance a GPU kernel, is one file, one line here and one
# in `_on_platform`.
_BACKENDS = {"taps": taps, "xla": xla, "native": native, "pallas": pallas_gpu}
IMPLEMENTATIONS = (None, *_BACKENDS)


def depthwise_conv(x_bhwc: Array, kernel_hwc: Array, *, implementation: str | None = None) -> Array:
  """Returns the (b, h, w, c) map of every channel of `x_bhwc` correlated with its own kernel.

  Args:
    x_bhwc: maps, float32 or bfloat16. Sums are taken in float32; the result has this dtype.
    kernel_hwc: (kernel height, kernel width, c), float32 or bfloat16, any size from 1. An even
      kernel has its extra row and column of padding at the bottom and right, as in PyTorch's and
      XLA's SAME.
    implementation: 'taps' (fast on CPU), 'xla' (`lax.conv_general_dilated`, the reference),
      'native' (C++ for CPU, the fastest there; needs the machine's C++ compiler, see `native.py`),
      'pallas' (kernels for NVIDIA GPUs), or None: 'taps' where the computation is lowered for CPU
      and 'xla' elsewhere.

  Raises:
    TypeError: a dtype other than float32 and bfloat16.
    ValueError: a wrong rank, an empty kernel, different channel counts, or an unknown
      implementation.
    NotImplementedError: 'native' lowered for a platform other than CPU.
    UserError: 'native' without a working C++ compiler.
  """
  return _checked_conv("x_bhwc", x_bhwc, kernel_hwc, implementation)


def depthwise_conv_cbhw(
  x_cbhw: Array, kernel_hwc: Array, *, implementation: str | None = None
) -> Array:
  """`depthwise_conv` for (c, b, h, w) maps; the kernel stays (kernel height, kernel width, c)."""
  return _checked_conv("x_cbhw", x_cbhw, kernel_hwc, implementation)


def _checked_conv(name: str, x: Array, kernel: Array, implementation: str | None) -> Array:
  layout = name[2:]
  for label, value, rank in ((name, x, 4), ("kernel_hwc", kernel, 3)):
    if jnp.ndim(value) != rank:
      raise ValueError(f"{label} must have {rank} dimensions, got shape {jnp.shape(value)}")
    if jnp.result_type(value) not in (jnp.float32, jnp.bfloat16):
      raise TypeError(f"{label} must be float32 or bfloat16, got {jnp.result_type(value)}")
  channels = jnp.shape(x)[layout.index("c")]
  if kernel.shape[2] != channels:
    raise ValueError(
      f"kernel_hwc must have the {channels} channels of {name}, got shape {kernel.shape}"
    )
  if 0 in kernel.shape[:2]:
    raise ValueError(
      f"kernel_hwc must have at least one row and one column, got shape {kernel.shape}"
    )
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation must be None or one of {sorted(_BACKENDS)}, got {implementation!r}"
    )
  function = _conv if implementation == "xla" else _conv_with_gradient

  def convolve(x: Array, kernel: Array) -> Array:
    return function(x, kernel, layout, implementation)

  x, kernel = jnp.asarray(x), jnp.asarray(kernel)
  sharding = jax.typeof(x).sharding
  axes = sharding.spec[layout.index("b")]
  if axes is not None:  # a batch cut over explicit axes: each device convolves its own images
    maps = PartitionSpec(*[None] * layout.index("b"), axes)
    convolve = jax.shard_map(
      convolve, mesh=sharding.mesh, in_specs=(maps, PartitionSpec()), out_specs=maps
    )
  return convolve(x, kernel)


def _on_platform(function: str, implementation: str | None, layout: str, *args: Array) -> Any:
  """Calls a backend's `function`: the named one's, or that for the platform of the lowering."""
  call = {
    name: partial(getattr(backend, function), layout=layout) for name, backend in _BACKENDS.items()
  }
  if implementation is not None:
    return call[implementation](*args)
  cpu, others = (call[default_implementation(platform)] for platform in ("cpu", "others"))
  return lax.platform_dependent(*args, cpu=cpu, default=others)


def default_implementation(platform: str) -> str:
  """What `implementation=None` means where the computation is lowered for `platform`."""
  return "taps" if platform == "cpu" else "xla"


def _conv(x: Array, kernel: Array, layout: str, implementation: str | None) -> Array:
  return _on_platform("forward", implementation, layout, x, kernel)


def _gradients(
  x: Array, kernel: Array, y_grad: Array, layout: str, implementation: str | None
) -> tuple[Array, Array]:
  return _on_platform("backward", implementation, layout, x, kernel, y_grad)


# The convolution is linear in each argument, so it and its gradients are also all that the
# gradients of the gradients need.
def _conv_forward(x: Array, kernel: Array, *settings: Any) -> tuple[Array, tuple]:
  return _conv_with_gradient(x, kernel, *settings), (x, kernel)


def _conv_backward(layout: str, implementation: str | None, residuals: tuple, y_grad: Array) -> Any:
  return _gradients_with_gradient(*residuals, y_grad, layout, implementation)


def _gradients_forward(x: Array, kernel: Array, y_grad: Array, *settings: Any) -> Any:
  return _gradients_with_gradient(x, kernel, y_grad, *settings), (x, kernel, y_grad)


def _gradients_backward(
  layout: str, implementation: str | None, residuals: tuple, grads: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
  (x, kernel, y_grad), (x_like, kernel_like) = residuals, grads
  settings = layout, implementation
  x_grad, kernel_grad = _gradients_with_gradient(x_like, kernel_like, y_grad, *settings)
  y = _conv_with_gradient(x_like, kernel, *settings) + _conv_with_gradient(
    x, kernel_like, *settings
  )
  return x_grad, kernel_grad, y


_conv_with_gradient = own_gradient(_conv, _conv_forward, _conv_backward, arrays=2)
_gradients_with_gradient = own_gradient(
  _gradients, _gradients_forward, _gradients_backward, arrays=3
)
