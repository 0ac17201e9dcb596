"""A persistent cache of XLA's compiled programs."""

import contextlib
import hashlib
import os
import pathlib
import platform
from typing import Any

import jax

from convmixer_jax.native import compiler

CACHE_BYTES = 2**30  # the oldest programs are deleted beyond this


def use_cache() -> None:
  """Enables JAX's compilation cache, unless the user has configured or disabled it.

  Programs are stored in `compiler.cache_directory()`, in a subdirectory per processor type:
  machines can share a home directory, and CPU programs do not run on all of them.
  """
  if _jax().jax_compilation_cache_dir is not None or not _jax().jax_enable_compilation_cache:
    return
  cache = compiler.cache_directory()
  if cache is None:
    return
  directory = cache / f"xla-{_processor()}"
  with contextlib.suppress(OSError):  # another process may be deleting too
    _delete_oldest(directory)
  jax.config.update("jax_compilation_cache_dir", str(directory))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _delete_oldest(directory: pathlib.Path) -> None:
  files = [(path, path.stat()) for path in directory.glob("*-cache")]
  entries = [(stat.st_mtime, stat.st_size, path) for path, stat in files]
  total = sum(size for _, size, _ in entries)
  for _, size, path in sorted(entries):
    if total <= CACHE_BYTES:
      break
    path.unlink()
    total -= size


def _jax() -> Any:
  """JAX's config, whose attributes exist only at run time."""
  return jax.config


def _processor() -> str:
  """A hash of the processor features that compiled programs may rely on."""
  told = [platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):  # Linux only
    first = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    names = ("model name", "flags", "Features", "CPU part")
    told += [line for line in first if line.startswith(names)]
  return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
