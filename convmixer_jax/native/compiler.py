"""Compiles this package's C++ sources to shared libraries on first use."""

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
  """The cache of compiled code: $XDG_CACHE_HOME/convmixer_jax, default ~/.cache/convmixer_jax.

  Created if missing. If that fails or it is not writable, logs a warning and returns None.
  """
  path = _cache()
  return path if _is_writable(path) else None


def _cache() -> pathlib.Path | None:
  try:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  except RuntimeError:  # no $HOME and no entry in the user database
    return None
  return pathlib.Path(root) / "convmixer_jax"


@functools.cache  # warn only once
def _is_writable(directory: pathlib.Path | None) -> bool:
  try:
    if directory is None:
      raise OSError("there is no home directory")
    directory.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=directory).close()
  except OSError as error:
    if multiprocessing.parent_process() is None:  # not in every worker
      _log.warning(
        "compiled code cannot be cached for the next start: %s. Set XDG_CACHE_HOME to a writable "
        "directory",
        error,
      )
    return False
  return True


def scratch() -> pathlib.Path:
  """A substitute for the cache: a temporary directory that is deleted with this process."""
  return pathlib.Path(_scratch().name)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
  return tempfile.TemporaryDirectory(prefix="convmixer_jax-")


@functools.cache
def library(source: pathlib.Path, *flags: str) -> pathlib.Path:
  """Returns the path of the library, and compiles it unless it is cached.

  The compiler is $CXX, default c++. The file name has a hash of the source, the compiler, the flags
  and the processor. Without a cache the library is compiled for this process only.

  Raises:
    CompilerError: if the compiler fails, with the command and the last lines of its output; or if
      the library cannot be written anywhere.
  """
  command = [*shlex.split(os.environ.get("CXX") or "c++"), *_FLAGS, *flags]
  # Hash what -march=native means on this machine: machines can share a home directory.
  meaning = _run([*command, "-E", "-dM", "-x", "c++", os.devnull])
  parts = (source.read_text(), meaning, platform.machine(), *command)
  key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
  name = f"{source.stem}-{key}.so"
  cache = _cache()
  if cache and (cache / name).exists():  # also in a read-only cache
    return cache / name
  try:
    path = (cache_directory() or scratch()) / name
    with tempfile.TemporaryDirectory(dir=path.parent) as partial:
      made = pathlib.Path(partial) / name
      _run([*command, str(source), "-o", str(made)])
      made.replace(path)  # atomic: several processes may do this at once
  except OSError as error:
    raise CompilerError(f"{name} cannot be stored: {error}") from error
  return path


def _run(command: list[str]) -> str:
  """Runs the compiler and returns its output."""
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
      f"the C++ compiler {command[0]!r} failed with status {done.returncode}. The command was "
      f"{shown}, its last lines of output:\n{last_lines}"
    )
  return done.stdout
