"""Allows one writer at a time per directory, on local disks, on NFS and in object stores.

On file systems with locks, the writer holds a POSIX record lock on `run.lock`. The kernel releases
it however the process ends, it works across the clients of an NFS server, and data workers do not
inherit it. Elsewhere, `run.lock` is a lease that its holder renews every few seconds. No clocks are
compared: a process that wants a lease watches whether it is still being renewed.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time

from convmixer_jax import storage
from convmixer_jax.errors import UserError

_log = logging.getLogger(__name__)

FILE = "run.lock"
RENEW_SECONDS = 4.0
WATCH_SECONDS = 2.5 * RENEW_SECONDS  # a lease that is not renewed for this long is dead

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

_held: set[str] = set()  # a record lock does not exclude its own process
_guard = threading.Lock()


@contextlib.contextmanager
def one_writer(directory: pathlib.Path) -> Iterator[Callable[[], None]]:
  """Context that only one process at a time can enter for the same directory.

  Creates the directory if needed, and removes it at the end if it is still empty.

  Yields:
    A function to call before each write that could interfere with another writer. It raises
    UserError if the lease was lost, because this process was suspended for over `WATCH_SECONDS`.

  Raises:
    UserError: within seconds, if the directory is in use; names the other process.
  """
  with contextlib.ExitStack() as stack:
    stack.enter_context(_once_in_this_process(directory))
    if storage.is_remote(directory):
      yield stack.enter_context(_Lease(directory)).check
      return
    stack.enter_context(_made(directory))
    try:
      stack.enter_context(_record_lock(directory))
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      yield stack.enter_context(_Lease(directory)).check
    else:
      yield lambda: None


@contextlib.contextmanager
def _once_in_this_process(directory: pathlib.Path) -> Iterator[None]:
  name = str(directory) if storage.is_remote(directory) else os.path.realpath(directory)
  with _guard:
    if name in _held:
      raise UserError(f"{directory} is already in use by this process")
    _held.add(name)
  try:
    yield
  finally:
    _held.discard(name)


@contextlib.contextmanager
def _made(directory: pathlib.Path) -> Iterator[None]:
  """Creates the directory and its parents, and removes those that are still empty at the end."""
  missing = [path for path in (directory, *directory.absolute().parents) if not path.exists()]
  directory.mkdir(parents=True, exist_ok=True)
  try:
    yield
  finally:
    for path in missing:
      with contextlib.suppress(OSError):  # not empty
        path.rmdir()


@contextlib.contextmanager
def _record_lock(directory: pathlib.Path) -> Iterator[None]:
  descriptor = _locked(directory)
  try:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _own_details().encode(), 0)
    os.fsync(descriptor)  # for other clients of an NFS server
    yield
  finally:
    with contextlib.suppress(OSError):
      (directory / FILE).unlink()  # while it is locked, see `_locked`
    os.close(descriptor)


def _locked(directory: pathlib.Path) -> int:
  """The descriptor of the locked file; closing any other one of it would release the lock."""
  path = directory / FILE
  while True:
    directory.mkdir(parents=True, exist_ok=True)  # its last user may have just removed it
    with contextlib.ExitStack() as stack:
      try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
      except FileNotFoundError:
        continue
      stack.callback(os.close, descriptor)
      try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except (BlockingIOError, PermissionError):  # POSIX allows either
        time.sleep(0.2)  # the holder may not have written its details yet
        raise _in_use(directory, os.pread(descriptor, 4096, 0).decode()) from None
      if _is_at(descriptor, path):
        stack.pop_all()
        return descriptor
      # else its last user deleted the file after we opened it


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
  """Whether an open file is still the one at the path; locking it has refreshed NFS's cache."""
  try:
    ours = os.fstat(descriptor)
    return ours.st_nlink > 0 and os.path.samestat(ours, path.stat())
  except FileNotFoundError:
    return False
  except OSError as error:
    if error.errno != errno.ESTALE:
      raise
    return False


class _Lease:
  """A file that its holder renews; of two concurrent writers, the last one gets the lease."""

  def __init__(self, directory: pathlib.Path):
    self._directory, self._path = directory, directory / FILE
    self._token = secrets.token_hex(8)
    self._renewals = 0
    self._is_lost = False
    self._using_file = threading.Lock()
    self._is_over = threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

  def __enter__(self) -> "_Lease":
    self._wait_until_free()
    self._write()
    time.sleep(RENEW_SECONDS / 2)
    text = self._read()
    if text is None or not self._is_own(text):
      raise _in_use(self._directory, text or "")
    self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._is_over.set()
    self._thread.join()
    with contextlib.suppress(Exception):  # as in `_keep`; without renewals the lease expires
      text = self._read()
      if text is not None and self._is_own(text):
        self._path.unlink()

  def check(self) -> None:
    """Checks that this process still holds the lease.

    Raises:
      UserError: if another process has taken it.
    """
    with self._using_file:
      text = self._read()
    if self._is_lost or (text is not None and not self._is_own(text)):
      raise UserError(
        f"{self._directory} was taken over by {_who(text or '')}, because this process was "
        f"suspended for more than {WATCH_SECONDS:g} seconds. The other one resumes from what this "
        "one had saved"
      )

  def _wait_until_free(self) -> None:
    first = self._read()
    if first is None:
      return
    _log.info(
      "%s names %s; checking for %g seconds whether it still runs",
      self._path,
      _who(first),
      WATCH_SECONDS,
    )
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
      time.sleep(RENEW_SECONDS / 8)
      now = self._read()
      if now is None:
        return
      if now != first:
        raise _in_use(self._directory, now)

  def _keep(self) -> None:
    while not self._is_over.wait(RENEW_SECONDS):
      # Clients of object stores raise many types of errors while the network is down. It may come
      # back in time; if not, `check` finds the token of another process.
      with contextlib.suppress(Exception), self._using_file:
        text = self._read()
        if text is not None and not self._is_own(text):
          self._is_lost = True
          return
        self._write()

  def _read(self) -> str | None:
    try:
      return self._path.read_text()
    except FileNotFoundError:
      return None

  def _write(self) -> None:
    self._renewals += 1
    text = _own_details(token=self._token, renewals=self._renewals)
    if storage.is_remote(self._path):  # where a write is atomic
      self._path.write_text(text)
      return
    partial = self._path.with_name(f"{FILE}.{self._token}")
    partial.write_text(text)
    partial.replace(self._path)

  def _is_own(self, text: str) -> bool:
    return f'"{self._token}"' in text


def _own_details(**more) -> str:
  begin = time.strftime("%Y-%m-%d %H:%M:%S %Z")
  return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": begin, **more})


def _who(text: str) -> str:
  try:
    details = json.loads(text)
    return f"process {details['pid']} on host {details['host']} since {details['since']}"
  except (ValueError, KeyError, TypeError):  # the file is just being written
    return "another process"


def _in_use(directory: pathlib.Path, text: str) -> UserError:
  return UserError(
    f"{directory} is in use by {_who(text)}: wait until it ends, or use another --workdir"
  )
