"""Paths on disks and in object stores, and what the user is told of them."""

from collections.abc import Iterator
import contextlib
import errno
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
from typing import cast

from convmixer_jax.errors import UserError

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def path_of(name: str | os.PathLike[str]) -> pathlib.Path:
  """The path of a file or directory, which does not have to exist.

  "gs://BUCKET/..." gives a path in Google Cloud Storage, which reads and writes by the methods of a
  `pathlib.Path`, but cannot append to a file.

  Raises:
    UserError: for another object store, or without the package that reaches this one.
  """
  text = os.fspath(name)
  if "://" not in text:
    return pathlib.Path(text).expanduser()
  if not text.startswith("gs://"):
    raise UserError(
      f"{text}: of object stores, checkpoints can be written to gs:// alone. Mount the other one "
      "as a directory"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{text}: the package gcsfs is missing: pip install 'convmixer-jax[gcs]'")
  from etils import epath

  return cast(pathlib.Path, epath.Path(text))


def is_remote(path: pathlib.Path) -> bool:
  """Whether `path` is in an object store, where files are written as a whole."""
  return "://" in str(path)


def check_new(path: pathlib.Path) -> None:
  """Looks, before any long work, whether a file or directory can be made; makes nothing.

  Raises:
    UserError: if it exists already, or the nearest directory above it cannot be written to.
  """
  if path.exists():
    raise UserError(f"{path} exists already")
  nearest = next(parent for parent in path.absolute().parents if parent.exists())
  if not nearest.is_dir():
    raise UserError(f"{path} cannot be written: {nearest} is no directory")
  try:
    tempfile.TemporaryFile(dir=nearest).close()
  except OSError as error:
    raise UserError(f"{path} cannot be written in {nearest}: {error.strerror}") from None


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file in one piece, so that nobody reads half of it."""
  partial = path if is_remote(path) else path.with_suffix(".partial")
  partial.write_text(text)  # an object store takes it in one piece
  if partial != path:
    partial.replace(path)


def check_writable(workdir: pathlib.Path) -> None:
  """Looks whether the directory can be written to, or made, before any long work; makes nothing.

  Raises:
    UserError: if it is no directory, or is read-only.
  """
  if is_remote(workdir):
    return
  nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
  if not nearest.is_dir():
    raise UserError(f"--workdir={workdir}: {nearest} is a file; name a directory")
  if not os.access(nearest, os.W_OK | os.X_OK):
    raise UserError(
      f"--workdir={workdir}: {nearest} cannot be written to, it is read-only here; name another "
      "--workdir, or make it writable"
    )


@contextlib.contextmanager
def reported(workdir: pathlib.Path) -> Iterator[None]:
  """Inside it, an error of the disk becomes one line for the user.

  Raises:
    UserError: saying what is wrong, how full the disk is and which checkpoint is the last.
  """
  try:
    yield
  except (OSError, ValueError) as error:
    reason = _reason(error, workdir)
    if reason is None:
      raise
    steps = [p for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    last = max(steps, key=lambda path: int(path.name), default="none, no save was finished")
    raise UserError(
      f"{reason}{_usage(workdir)}. The last good checkpoint: {last}. Make space there and repeat "
      "the command: it goes on from that checkpoint"
    ) from error


def _reason(error: OSError | ValueError, workdir: pathlib.Path) -> str | None:
  """Which file could not be written, and why; None if this is no error of writing."""
  if isinstance(error, OSError):
    if error.errno not in _WRITING:
      return None
    return f"{error.filename or workdir} cannot be written: {error.strerror}"
  # TensorStore's, by way of Orbax, names files and ends: `: No space left [os_error_code='28']`.
  why = re.search(r": ([^:\[]+) \[os_error_code", str(error))
  checkpoint = re.search(r'"([^"]*/checkpoints/\d+)', str(error))
  return f"{checkpoint[1]} cannot be written: {why[1]}" if why and checkpoint else None


def _usage(workdir: pathlib.Path) -> str:
  try:
    usage = shutil.disk_usage(workdir)
  except OSError:
    return ""
  return f" ({usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB are free)"
