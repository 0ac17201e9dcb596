"""Paths on disks and in object stores, and what the user is told of them."""

from collections.abc import Iterator
import contextlib
import errno
import importlib.util
import os
import pathlib
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
  """As `check_writable`, of a file or directory that must not exist.

  Raises:
    UserError: if it does, or cannot be made.
  """
  if path.exists():
    raise UserError(f"{path} exists already")
  check_writable(path)


def check_writable(path: pathlib.Path) -> None:
  """Looks, before any long work, whether a directory, or what is to be made, can be written to.

  It makes nothing.

  Raises:
    UserError: if the nearest directory that exists is none, or cannot be written to.
  """
  if is_remote(path):
    return
  nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
  try:
    tempfile.TemporaryFile(dir=nearest).close()
  except OSError as error:
    raise UserError(
      f"{path} cannot be written to ({nearest}: {error.strerror}); name another place, or make it "
      "writable"
    ) from None


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file in one piece, so that nobody reads half of it."""
  partial = path if is_remote(path) else path.with_suffix(".partial")
  partial.write_text(text)  # an object store takes it in one piece
  if partial != path:
    partial.replace(path)


@contextlib.contextmanager
def reported(workdir: pathlib.Path) -> Iterator[None]:
  """Inside it, an error of the disk becomes one line for the user.

  Raises:
    UserError: saying what is wrong, how full the disk is and which checkpoint is the last.
  """
  try:
    yield
  except (OSError, ValueError) as error:
    # TensorStore's, by way of Orbax, is a ValueError with the system's words in it.
    why = next((words for words in map(os.strerror, _WRITING) if words in str(error)), None)
    if why is None:
      raise
    place = getattr(error, "filename", workdir / "checkpoints") or workdir
    steps = [p for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    last = max(steps, key=lambda path: int(path.name), default="none, no save was finished")
    raise UserError(
      f"{place} cannot be written: {why}{_usage(workdir)}. The last good checkpoint: {last}. Make "
      "space there and repeat the command: it goes on from that checkpoint"
    ) from error


def _usage(workdir: pathlib.Path) -> str:
  try:
    usage = shutil.disk_usage(workdir)
  except OSError:
    return ""
  return f" ({usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB are free)"
