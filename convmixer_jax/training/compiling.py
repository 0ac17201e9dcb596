"""Logs XLA's compilations as they happen."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import time
from typing import Any

import jax

_log = logging.getLogger(__name__)

_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Announced:
  """Wraps a jitted function and logs when a call compiles it, and how long that takes.

  Args:
    function: a jitted function, compiled for each new shape of its last argument.
    name: such as "the training step".
  """

  def __init__(self, function: Callable[..., Any], name: str):
    self._function, self._name = function, name
    self._seen: set[tuple[Any, ...]] = set()

  def __call__(self, *arguments: Any) -> Any:
    """Calls the function."""
    shapes = tuple(x.shape for x in jax.tree.leaves(arguments[-1]))
    if shapes in self._seen:
      return self._function(*arguments)
    _log.info("compiling %s ...", self._name)
    begin = time.perf_counter()
    with _cache_hits() as hits:
      result = self._function(*arguments)
    seconds = time.perf_counter() - begin
    source = f", from the cache in {_settings().jax_compilation_cache_dir}" if hits else ""
    _log.info("compiled %s in %.1f s%s", self._name, seconds, source)
    self._seen.add(shapes)
    return result


@contextlib.contextmanager
def _cache_hits() -> Iterator[list[str]]:
  """Yields a list to which each hit in JAX's compilation cache adds an element."""
  hits: list[str] = []

  def note(event: str, **_: Any) -> None:
    if event == _CACHE_HIT:
      hits.append(event)

  jax.monitoring.register_event_listener(note)
  try:
    yield hits
  finally:
    jax.monitoring.unregister_event_listener(note)


def _settings() -> Any:
  """JAX's config, typed as Any: its attributes are defined at run time."""
  return jax.config
