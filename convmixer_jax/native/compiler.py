"""C++ sources of this package as shared libraries, compiled where and when they are first used."""

import functools
import hashlib
import logging
import multiprocessing
import os
import pathlib
import platform
import shlex
import subprocess
import tempfile

_log = logging.getLogger(__name__)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")


class CompilerError(RuntimeError):
  """There is no C++ compiler, or it failed."""


def cache_directory() -> pathlib.Path | None:
  """Where compiled code is kept: $XDG_CACHE_HOME/convmixer_jax, or else ~/.cache/convmixer_jax.

  It is made if need be. None, with a warning, if that is not possible or it cannot be written to.
  """
  path = _cache()
  return path if _is_writable(path) else None


def _cache() -> pathlib.Path | None:
  try:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  except RuntimeError:  # neither $HOME nor an entry among the system's users
    return None
  return pathlib.Path(root) / "convmixer_jax"


@functools.cache  # for one warning
def _is_writable(directory: pathlib.Path | None) -> bool:
  try:
    if directory is None:
      raise OSError("there is no home directory")
    directory.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=directory).close()
  except OSError as error:
    if multiprocessing.parent_process() is None:  # once, not in each worker too
      _log.warning(
        "what is compiled cannot be kept for the next start: %s. Set XDG_CACHE_HOME to a directory "
        "that can be written to",
        error,
      )
    return False
  return True


def scratch() -> pathlib.Path:
  """In place of a cache: a directory that goes with this process."""
  return pathlib.Path(_scratch().name)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
  return tempfile.TemporaryDirectory(prefix="convmixer_jax-")


@functools.cache
def library(source: pathlib.Path, *flags: str) -> pathlib.Path:
  """Returns the path of the library, made by this call if the cache lacks it.

  The compiler is $CXX, or else c++. The name tells the source, the compiler, the flags and the
  processor that it was made for. Without a cache it is made for this process alone.

  Raises:
    CompilerError: with the command and its last lines; or if nothing can be written anywhere.
  """
  command = [*shlex.split(os.environ.get("CXX") or "c++"), *_FLAGS, *flags]
  # What -march=native means here is part of the name: machines can share a home directory.
  meaning = _run([*command, "-E", "-dM", "-x", "c++", os.devnull])
  parts = (source.read_text(), meaning, platform.machine(), *command)
  key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
  name = f"{source.stem}-{key}.so"
  cache = _cache()
  if cache and (cache / name).exists():  # in a cache that is read-only too
    return cache / name
  try:
    path = (cache_directory() or scratch()) / name
    with tempfile.TemporaryDirectory(dir=path.parent) as partial:
      made = pathlib.Path(partial) / name
      _run([*command, str(source), "-o", str(made)])
      made.replace(path)  # in one piece: several processes may come here at once
  except OSError as error:
    raise CompilerError(f"there is no room for {name}: {error}") from error
  return path


def _run(command: list[str]) -> str:
  """Returns what the compiler prints."""
  shown = shlex.join(command)
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except OSError as error:
    raise CompilerError(
      f"the C++ compiler {command[0]!r} cannot be run ({error}); name one in $CXX. The command was "
      f"{shown}"
    ) from error
  if done.returncode:
    last_lines = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
    raise CompilerError(
      f"the C++ compiler {command[0]!r} ended with status {done.returncode}. The command was "
      f"{shown}, its last lines\n{last_lines}"
    )
  return done.stdout
