"""Paths on disks and in object stores, and error messages about them."""

from collections.abc import Iterator
import contextlib
import errno
import importlib.util
import os
import pathlib
import shutil
import tempfile
from typing import cast

from convmixer_jax.errors import UserError, missing

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def path_of(name: str | os.PathLike[str]) -> pathlib.Path:
  """The path of a file or directory, which need not exist.

  "gs://BUCKET/..." gives a path in Google Cloud Storage. It has the methods of a `pathlib.Path`,
  but cannot append to a file.

  Raises:
    UserError: for another object store, or if the package gcsfs is missing.
  """
  text = os.fspath(name)
  if "://" not in text:
    return pathlib.Path(text).expanduser()
  if not text.startswith("gs://"):
    raise UserError(
      f"{text}: gs:// is the only supported object store. Mount another one as a directory"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise missing("gcsfs", "gcs")
  from etils import epath

  return cast(pathlib.Path, epath.Path(text))


def is_remote(path: pathlib.Path) -> bool:
  """Whether `path` is in an object store, where writing a file is atomic."""
  return "://" in str(path)


def check_new(path: pathlib.Path) -> None:
  """Checks that a file or directory does not exist yet and can be created.

  Raises:
    UserError: if it exists, or cannot be created.
  """
  if path.exists():
    raise UserError(f"{path} exists already")
  check_writable(path)


def check_writable(path: pathlib.Path) -> None:
  """Checks, before any long work, that a path can be written to; it creates nothing.

  Raises:
    UserError: if the nearest existing parent is not a writable directory.
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
  """Writes a file atomically."""
  partial = path if is_remote(path) else path.with_suffix(".partial")
  partial.write_text(text)  # atomic in an object store
  if partial != path:
    partial.replace(path)


@contextlib.contextmanager
def reported(workdir: pathlib.Path) -> Iterator[None]:
  """Context in which a disk error becomes a `UserError` of one line.

  Raises:
    UserError: with the cause, the free space, the last good checkpoint and what to do next.
  """
  try:
    yield
  except (OSError, ValueError) as error:
    # TensorStore's errors, passed on by Orbax, are ValueErrors that contain the system's message.
    why = next((words for words in map(os.strerror, _WRITING) if words in str(error)), None)
    if why is None:
      raise
    place = getattr(error, "filename", workdir / "checkpoints") or workdir
    steps = [p for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    last = max(steps, key=lambda path: int(path.name), default="none, no save was finished")
    raise UserError(
      f"{place} cannot be written: {why}{_usage(workdir)}. The last good checkpoint: {last}. Free "
      "some space there and repeat the command: it resumes from that checkpoint"
    ) from error


def _usage(workdir: pathlib.Path) -> str:
  try:
    usage = shutil.disk_usage(workdir)
  except OSError:
    return ""
  return f" ({usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB are free)"
