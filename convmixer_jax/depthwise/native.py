"""Depthwise convolution for CPU in C++: `native.cc`, called by XLA's foreign function interface.

Nothing is compiled at installation. The machine's C++ compiler ($CXX, or else c++) makes the
library when the first computation is traced, and leaves it in $XDG_CACHE_HOME/convmixer_jax
(~/.cache without that variable) for the processes to come. Its name tells the source, the compiler,
the version of jaxlib and the processor that it was made for.

What XLA does not know of such calls: a `jit` over sharded maps gathers them first, unless the
convolution is inside `shard_map`; the result is the same. What `jax.export` makes of one needs
`disabled_checks` with its targets, and `register` in the process that runs it.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import subprocess
import tempfile

import jax
from jax import Array, lax
import jax.numpy as jnp

from convmixer_jax.errors import UserError

_SOURCE = pathlib.Path(__file__).with_name("native.cc")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
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
  library = ctypes.CDLL(str(_library()))
  for target, symbol in TARGETS.items():
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")


def _library() -> pathlib.Path:
  """Returns the compiled library, made by this call if need be."""
  compiler = shlex.split(os.environ.get("CXX") or "c++")
  # What -march=native means here is part of the name, so that machines can share a home directory.
  meaning = _run([*compiler, *_FLAGS, "-E", "-dM", "-x", "c++", os.devnull])
  version = _run([*compiler, "--version"])
  parts = (_SOURCE.read_text(), version, meaning, jax.lib.__version__, platform.machine())
  key = hashlib.sha256("\0".join((*parts, *compiler, *_FLAGS)).encode()).hexdigest()[:16]
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  path = cache / "convmixer_jax" / f"depthwise-{key}.so"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
      made = pathlib.Path(scratch) / path.name
      include = f"-I{jax.ffi.include_dir()}"
      _run([*compiler, *_FLAGS, include, str(_SOURCE), "-o", str(made)])
      made.replace(path)  # in one piece: several processes may come here at once
  return path


def _run(command: list[str]) -> str:
  """Returns what the compiler prints."""
  alternative = 'Without a C++ compiler, leave depthwise unset or choose "taps".'
  shown = shlex.join(command)
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except OSError as error:
    raise UserError(
      f'depthwise="native" needs a C++ compiler, and {command[0]!r} cannot be run ({error}). Name '
      f"one in $CXX; the command was: {shown}. {alternative}"
    ) from error
  if done.returncode:
    last_lines = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
    raise UserError(
      f'depthwise="native" could not be compiled: {command[0]!r} ended with status '
      f"{done.returncode}. The command was: {shown}. {alternative} Its last lines:\n{last_lines}"
    )
  return done.stdout
