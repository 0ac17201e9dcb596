"""What the user is told when the disk of a workdir takes no more."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import re
import shutil

from convmixer_jax import storage
from convmixer_jax.errors import UserError

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def check_writable(workdir: pathlib.Path) -> None:
  """Looks whether the directory can be written to, or made, before any long work; makes nothing.

  Raises:
    UserError: if it is no directory, or is read-only.
  """
  if storage.is_remote(workdir):
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
