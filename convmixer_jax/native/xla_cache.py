"""XLA's compiled programs, kept for the next start."""

import contextlib
import hashlib
import os
import pathlib
import platform
from typing import Any

import jax

from convmixer_jax.native import compiler

CACHE_BYTES = 2**30  # the oldest go when it holds more


def use_cache() -> None:
  """Keeps compiled programs for the next start, if the user has not decided about JAX's cache.

  They lie in `compiler.cache_directory()`, by the processor's features: machines can share a home
  directory, and programs for CPUs do not run on all of them.
  """
  if _jax().jax_compilation_cache_dir is not None or not _jax().jax_enable_compilation_cache:
    return
  cache = compiler.cache_directory()
  if cache is None:
    return
  directory = cache / f"xla-{_processor()}"
  with contextlib.suppress(OSError):  # another start may be doing the same
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
  """JAX's settings, which have their attributes from run time only."""
  return jax.config


def _processor() -> str:
  """A name for what programs that were compiled for this machine's processor may rely on."""
  told = [platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):  # Linux alone has it
    first = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    names = ("model name", "flags", "Features", "CPU part")
    told += [line for line in first if line.startswith(names)]
  return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
