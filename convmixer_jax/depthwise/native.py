"""Depthwise convolution for CPU in C++, `native/depthwise.cc`, as an XLA FFI target.

Nothing is compiled at installation. When the first computation is traced, the machine's C++
compiler ($CXX, default c++) builds the library, which is cached for later processes in
$XDG_CACHE_HOME/convmixer_jax (default ~/.cache/convmixer_jax); see `native/compiler.py`.

XLA treats such calls as opaque. A `jit` over sharded feature maps gathers them first, unless the
convolution is inside `shard_map`; the result is the same. `jax.export` needs `disabled_checks` for
the targets, and the process that runs the exported program has to call `register`.
"""

import ctypes
import functools
import importlib.metadata
import pathlib

import jax
from jax import Array, lax
import jax.numpy as jnp

from convmixer_jax.errors import UserError
from convmixer_jax.native.compiler import CompilerError, library

ORDER = "bhwc"

_SOURCE = pathlib.Path(__file__).parents[1] / "native" / "depthwise.cc"
TARGETS = {
  "convmixer_jax_depthwise_forward": "DepthwiseForward",
  "convmixer_jax_depthwise_backward": "DepthwiseBackward",
}


def forward(x_bhwc: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_bhwc`, in its shape and dtype."""
  x, kernel = x_bhwc.astype(jnp.float32), kernel_hwc.astype(jnp.float32)
  (y_bhwc,) = _call("convmixer_jax_depthwise_forward", (x,), x, kernel)
  return y_bhwc.astype(x_bhwc.dtype)


def backward(x_bhwc: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_bhwc` and `kernel_hwc`, in their dtypes."""
  x, kernel, g = (array.astype(jnp.float32) for array in (x_bhwc, kernel_hwc, y_grad))
  x_grad, kernel_grad = _call("convmixer_jax_depthwise_backward", (x, kernel), x, kernel, g)
  return x_grad.astype(x_bhwc.dtype), kernel_grad.astype(kernel_hwc.dtype)


def _call(target: str, results_like: tuple[Array, ...], *args: Array) -> tuple[Array, ...]:
  """Calls the target; the results are float32 with the shapes of `results_like`.

  Lowering for a platform other than CPU raises JAX's NotImplementedError.
  """
  register()
  results = tuple(jax.typeof(array) for array in results_like)
  call = jax.ffi.ffi_call(target, results, vmap_method="broadcast_all")
  return lax.platform_dependent(*args, cpu=lambda *args: call(*args))


def register() -> None:
  """Compiles the library unless it is cached, loads it and registers it with XLA, once.

  Tracing a convolution calls this. Before running a program exported with `jax.export`, call it
  explicitly.

  Raises:
    UserError: if there is no compiler, or it failed.
  """
  if reason := why_not():
    raise UserError(
      f'depthwise="native": {reason}. Without a C++ compiler leave depthwise unset, or use "taps"'
    )


@functools.cache
def why_not() -> str | None:
  """Registers the library; returns None, or the reason why that failed."""
  try:
    version = importlib.metadata.version("jaxlib")  # a new version has new headers: recompile
    path = library(_SOURCE, f"-I{jax.ffi.include_dir()}", f"-DJAXLIB={version}")
    symbols = ctypes.CDLL(str(path))
  except (CompilerError, OSError) as error:
    return str(error)
  for target, symbol in TARGETS.items():
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(symbols, symbol)), platform="cpu")
  return None
