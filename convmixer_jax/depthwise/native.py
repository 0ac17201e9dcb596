"""Depthwise convolution for CPU in C++, `native/depthwise.cc`, as an FFI target of XLA.

Nothing is compiled at installation. The machine's C++ compiler ($CXX, or else c++) makes the
library when the first computation is traced, and leaves it in $XDG_CACHE_HOME/convmixer_jax
(~/.cache without that variable) for the processes to come; see `native/compiler.py`.

What XLA does not know of such calls: a `jit` over sharded maps gathers them first, unless the
convolution is inside `shard_map`; the result is the same. What `jax.export` makes of one needs
`disabled_checks` with its targets, and `register` in the process that runs it.
"""

import ctypes
import functools
import importlib.metadata
import logging
import pathlib

import jax
from jax import Array, lax
import jax.numpy as jnp

from convmixer_jax.errors import UserError
from convmixer_jax.native.compiler import CompilerError, library

_log = logging.getLogger(__name__)

_SOURCE = pathlib.Path(__file__).parents[1] / "native" / "depthwise.cc"
TARGETS = {
  "convmixer_jax_depthwise_forward": "DepthwiseForward",
  "convmixer_jax_depthwise_backward": "DepthwiseBackward",
}


def forward(x: Array, kernel_hwc: Array, layout: str) -> Array:
  """Returns the map of `x`'s shape and dtype; `layout` names its dimensions, such as 'bhwc'."""
  x_bhwc = _transpose(x, layout, "bhwc").astype(jnp.float32)
  kernel = kernel_hwc.astype(jnp.float32)
  (y_bhwc,) = _call("convmixer_jax_depthwise_forward", (x_bhwc,), x_bhwc, kernel)
  return _transpose(y_bhwc.astype(x.dtype), "bhwc", layout)


def backward(x: Array, kernel_hwc: Array, y_grad: Array, layout: str) -> tuple[Array, Array]:
  """Returns the gradients of `x` and `kernel_hwc`, in their dtypes."""
  x_bhwc, g_bhwc = (_transpose(a, layout, "bhwc").astype(jnp.float32) for a in (x, y_grad))
  kernel = kernel_hwc.astype(jnp.float32)
  x_grad, kernel_grad = _call(
    "convmixer_jax_depthwise_backward", (x_bhwc, kernel), x_bhwc, kernel, g_bhwc
  )
  x_grad = _transpose(x_grad.astype(x.dtype), "bhwc", layout)
  return x_grad, kernel_grad.astype(kernel_hwc.dtype)


def _transpose(x: Array, source: str, target: str) -> Array:
  return x.transpose([source.index(letter) for letter in target])


def _call(target: str, results_like: tuple[Array, ...], *args: Array) -> tuple[Array, ...]:
  """Calls the target; its results have the shapes of `results_like`, float32.

  Lowering for a platform other than CPU raises JAX's NotImplementedError.
  """
  register()
  results = tuple(jax.typeof(array) for array in results_like)
  call = jax.ffi.ffi_call(target, results, vmap_method="broadcast_all")
  return lax.platform_dependent(*args, cpu=lambda *args: call(*args))


@functools.cache
def register() -> None:
  """Compiles the library if the cache lacks it, loads it, and makes it known to XLA, once.

  Tracing a convolution does so by itself. A process that calls what `jax.export` made of one has to
  call this before.

  Raises:
    UserError: there is no compiler, or it failed.
  """
  try:
    version = importlib.metadata.version("jaxlib")  # so that another one's headers are used anew
    path = library(_SOURCE, f"-I{jax.ffi.include_dir()}", f"-DJAXLIB={version}")
    symbols = ctypes.CDLL(str(path))
  except (CompilerError, OSError) as error:
    raise UserError(
      f'depthwise="native": {error}. Without a C++ compiler, leave depthwise unset or choose "taps"'
    ) from None
  for target, symbol in TARGETS.items():
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(symbols, symbol)), platform="cpu")


def is_available() -> bool:
  """Whether `register` can make the library; a warning says why not."""
  try:
    register()
  except UserError as error:
    _log.warning("%s", error)
    return False
  return True
