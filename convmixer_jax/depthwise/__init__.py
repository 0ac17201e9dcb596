"""Depthwise convolution: stride 1, SAME padding, one kernel per channel.

The convolution has a custom gradient: the forward pass, the input gradient and the kernel gradient
each use the fastest code. It works under `jit`, `vmap`, `shard_map` and `jax.export`, and supports
`grad` of any order. Forward-mode differentiation (`jvp`) needs `implementation="xla"`, which leaves
all derivatives to JAX; the others raise a TypeError that says so.

Dimension letters: b batch, h height, w width, c channels.
"""

from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from convmixer_jax.depthwise import by_platform, native, orders, pallas_gpu, taps, xla
from convmixer_jax.depthwise.gradients import own_gradient

# An implementation is a module with ORDER, the dimension order of its feature maps,
# forward(x, kernel) -> y and backward(x, kernel, y_grad) -> (x_grad, kernel_grad). To add one, add
# a file and one line here.
_MODULES: dict[str | None, Any] = {
  None: by_platform,
  "taps": taps,
  "xla": xla,
  "native": native,
  "pallas": pallas_gpu,
}
IMPLEMENTATIONS = tuple(_MODULES)
# What is worth trying on each platform, best guess first.
CANDIDATES = {"cpu": ("native", "taps"), "gpu": ("xla", "pallas"), "tpu": ("xla",)}


def order_of(implementation: str | None) -> str:
  """The dimension order, "bhwc" or "cbhw", for which `implementation` needs no transposes."""
  return _MODULES[implementation].ORDER


def depthwise_conv(
  x: Array,
  kernel_hwc: Array,
  *,
  implementation: str | None = None,
  order: str = "bhwc",
  mesh: Mesh | None = None,
) -> Array:
  """Correlates each channel of `x` with its own kernel; keeps the shape and dtype of `x`.

  Args:
    x: feature maps (b, h, w, c), float32 or bfloat16. Sums are computed in float32.
    kernel_hwc: (kernel height, kernel width, c), float32 or bfloat16, any size from 1. For an even
      kernel the extra row and column of padding are at the bottom and right, as with SAME in
      PyTorch and XLA.
    implementation: "native" (C++, the fastest on CPU; needs a C++ compiler, see `native.py`),
      "taps" (pure JAX, for CPU), "xla" (`lax.conv_general_dilated`, the reference), "pallas"
      (kernels for NVIDIA GPUs), or None: `by_platform` chooses when the computation is lowered.
    order: dimension order of `x`, such as "cbhw".
    mesh: devices to shard the batch over, along all mesh axes; each device convolves its own
      images. Not needed for a mesh with explicit axes or inside `shard_map`.

  Raises:
    TypeError: if a dtype is neither float32 nor bfloat16.
    ValueError: if a rank is wrong, the kernel is empty, channel counts differ, or the
      implementation is unknown.
    NotImplementedError: if "native" is lowered for a platform other than CPU.
    UserError: if "native" finds no working C++ compiler.
  """
  _check(x, kernel_hwc, implementation, order)
  x, kernel_hwc = jnp.asarray(x), jnp.asarray(kernel_hwc)
  function = _conv if implementation == "xla" else _conv_with_gradient

  def convolve(x: Array, kernel_hwc: Array) -> Array:
    return function(x, kernel_hwc, order, implementation)

  sharding = jax.typeof(x).sharding
  axes = sharding.spec[order.index("b")]
  if mesh is not None:
    axes = mesh.axis_names
  if axes is not None:  # the compiler cannot shard custom kernels
    spec = PartitionSpec(*[None] * order.index("b"), axes)
    convolve = jax.shard_map(
      convolve, mesh=mesh or sharding.mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
    )
  return convolve(x, kernel_hwc)


def _check(x: Array, kernel_hwc: Array, implementation: str | None, order: str) -> None:
  name = f"x_{order}"
  for label, value, rank in ((name, x, 4), ("kernel_hwc", kernel_hwc, 3)):
    if jnp.ndim(value) != rank:
      raise ValueError(f"{label} must have {rank} dimensions, got shape {jnp.shape(value)}")
    if jnp.result_type(value) not in (jnp.float32, jnp.bfloat16):
      raise TypeError(f"{label} must be float32 or bfloat16, got {jnp.result_type(value)}")
  channels = jnp.shape(x)[order.index("c")]
  if kernel_hwc.shape[2] != channels:
    raise ValueError(
      f"kernel_hwc must have the {channels} channels of {name}, got shape {kernel_hwc.shape}"
    )
  if 0 in kernel_hwc.shape[:2]:
    raise ValueError(
      f"kernel_hwc must have at least one row and one column, got shape {kernel_hwc.shape}"
    )
  if implementation not in IMPLEMENTATIONS:
    allowed = ", ".join(map(str, IMPLEMENTATIONS))
    raise ValueError(f"implementation is {implementation!r}; allowed: {allowed}")


def _conv(x: Array, kernel: Array, order: str, implementation: str | None) -> Array:
  return orders.forward(x, kernel, _MODULES[implementation], order)


def _gradients(
  x: Array, kernel: Array, y_grad: Array, order: str, implementation: str | None
) -> tuple[Array, Array]:
  return orders.backward(x, kernel, y_grad, _MODULES[implementation], order)


# The convolution is linear in each argument, so higher-order gradients need only the convolution
# and its gradients.
def _conv_forward(x: Array, kernel: Array, *settings: Any) -> tuple[Array, tuple]:
  return _conv_with_gradient(x, kernel, *settings), (x, kernel)


def _conv_backward(order: str, implementation: str | None, residuals: tuple, y_grad: Array) -> Any:
  return _gradients_with_gradient(*residuals, y_grad, order, implementation)


def _gradients_forward(x: Array, kernel: Array, y_grad: Array, *settings: Any) -> Any:
  return _gradients_with_gradient(x, kernel, y_grad, *settings), (x, kernel, y_grad)


def _gradients_backward(
  order: str, implementation: str | None, residuals: tuple, grads: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
  (x, kernel, y_grad), (x_like, kernel_like) = residuals, grads
  settings = order, implementation
  x_grad, kernel_grad = _gradients_with_gradient(x_like, kernel_like, y_grad, *settings)
  y = _conv_with_gradient(x_like, kernel, *settings) + _conv_with_gradient(
    x, kernel_like, *settings
  )
  return x_grad, kernel_grad, y


_conv_with_gradient = own_gradient(_conv, _conv_forward, _conv_backward, arrays=2)
_gradients_with_gradient = own_gradient(
  _gradients, _gradients_forward, _gradients_backward, arrays=3
)
