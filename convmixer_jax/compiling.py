"""XLA's compilations: said when they happen, and kept for the next start."""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import time
from typing import Any

import jax

from convmixer_jax import compiled

_log = logging.getLogger(__name__)

CACHE_BYTES = 2**30  # the oldest go when it holds more

_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Announced:
  """A jitted function that says when a call compiles it, and how long that took.

  Args:
    function: compiled anew for each shape of its last argument.
    name: such as "the training step".

  Attributes:
    seconds: of all calls, of all functions of this class, that had something to compile.
  """

  seconds = 0.0

  def __init__(self, function: Callable[..., Any], name: str):
    self._function, self._name = function, name
    self._seen: set[tuple[Any, ...]] = set()

  def __call__(self, *arguments: Any) -> Any:
    """What the function gives."""
    shapes = tuple(x.shape for x in jax.tree.leaves(arguments[-1]))
    if shapes in self._seen:
      return self._function(*arguments)
    _log.info("compiling %s ...", self._name)
    begin = time.perf_counter()
    with _cache_hits() as hits:
      result = self._function(*arguments)
    seconds = time.perf_counter() - begin
    Announced.seconds += seconds
    source = f", from the cache in {_jax().jax_compilation_cache_dir}" if hits else ""
    _log.info("compiled %s in %.1f s%s", self._name, seconds, source)
    self._seen.add(shapes)
    return result


@contextlib.contextmanager
def _cache_hits() -> Iterator[list[str]]:
  """A list that gets an element for each executable that comes out of JAX's cache."""
  hits: list[str] = []

  def note(event: str, **_: Any) -> None:
    if event == _CACHE_HIT:
      hits.append(event)

  jax.monitoring.register_event_listener(note)
  try:
    yield hits
  finally:
    jax.monitoring.unregister_event_listener(note)


def use_cache() -> None:
  """Keeps compiled programs for the next start, if the user has not decided about JAX's cache.

  They lie in `compiled.cache_directory()`, by the processor's features: machines can share a home
  directory, and programs for CPUs do not run on all of them.
  """
  if _jax().jax_compilation_cache_dir is not None or not _jax().jax_enable_compilation_cache:
    return
  cache = compiled.cache_directory()
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
