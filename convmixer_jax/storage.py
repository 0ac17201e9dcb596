"""Paths on disks and in object stores."""

import importlib.util
import os
import pathlib
import tempfile
from typing import cast

from convmixer_jax.errors import UserError


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
