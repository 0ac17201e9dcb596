"""One writer per directory, on file systems with and without locks."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading

from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
import pytest

from convmixer_jax.errors import UserError
from convmixer_jax.parallel import lock

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import os, pathlib, subprocess, sys, time
from convmixer_jax.parallel import lock

with lock.one_writer(pathlib.Path(sys.argv[1])):
  if os.fork() == 0:
    time.sleep(100)  # like a data worker that outlives the run
  print("held", flush=True)
  sys.stdin.read()
"""


def ask(directory):
  with lock.one_writer(directory):
    pass


@pytest.fixture
def no_locks(monkeypatch):
  """A file system without locks, and leases that are renewed ten times a second."""

  def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "lockf", refuse)
  monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
  monkeypatch.setattr(lock, "WATCH_SECONDS", 0.25)


@pytest.fixture(params=["disk", "bucket"])
def directory(request, tmp_path, monkeypatch, no_locks):
  """A directory without locks: on disk, or in a bucket in memory."""
  if request.param == "disk":
    return tmp_path
  for name in ("gs", "gcs"):
    monkeypatch.setitem(_registry, name, MemoryFileSystem)
  MemoryFileSystem.store.clear()
  return epath.Path("gs://bucket/run")


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock on `tmp_path / "run"`."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    start_new_session=True,
  )
  assert process.stdout.readline() == b"held\n"
  yield process
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()


def test_another_process_gets_one_line_that_names_the_first(holder, tmp_path):
  expected = rf"run is in use by process {holder.pid} on host .+ since 20.+: wait until it ends, or"
  for _ in range(2):  # asking does not release it
    with pytest.raises(UserError, match=expected):
      ask(tmp_path / "run")


def test_a_killed_holder_is_in_nobodys_way(holder, tmp_path):
  """Nor is a child process of it that is still running."""
  holder.kill()
  holder.wait()
  assert (tmp_path / "run" / lock.FILE).exists()
  with lock.one_writer(tmp_path / "run"):
    assert str(os.getpid()) in (tmp_path / "run" / lock.FILE).read_text()


def test_nothing_is_left_of_a_lock_and_of_the_directories_it_made(tmp_path):
  directory = tmp_path / "new" / "run"
  for _ in range(2):
    with lock.one_writer(directory):
      assert (directory / lock.FILE).exists()
  assert list(tmp_path.iterdir()) == []
  with lock.one_writer(directory):
    (directory / "config.json").write_text("{}")
  assert list(directory.iterdir()) == [directory / "config.json"]


def test_the_process_itself_counts_too(tmp_path):
  """POSIX would grant it the lock, and release it when the second descriptor is closed."""
  with lock.one_writer(tmp_path), pytest.raises(UserError, match="already in use by this process"):
    ask(tmp_path / ".")
  ask(tmp_path)


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_none(tmp_path, monkeypatch):
  """The first lock is on a file that its last user deletes after it was opened."""
  lockf, calls = fcntl.lockf, []

  def late(descriptor, operation):
    if not calls:
      (tmp_path / lock.FILE).unlink()
    calls.append(descriptor)
    lockf(descriptor, operation)

  monkeypatch.setattr(fcntl, "lockf", late)
  with lock.one_writer(tmp_path):
    assert (tmp_path / lock.FILE).exists()
  assert len(calls) == 2


def test_a_lease_that_is_renewed_is_respected(directory):
  with lock._Lease(directory) as first:
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on"):
      ask(directory)
    first.check()
  with lock.one_writer(directory) as check:
    check()
  assert not (directory / lock.FILE).exists()


def test_a_lease_that_nobody_renews_is_taken_over(directory, caplog):
  dead = '{"pid": 7, "host": "gone", "since": "2020", "token": "x", "renewals": 3}'
  (directory / lock.FILE).write_text(dead)
  with caplog.at_level("INFO"), lock.one_writer(directory) as check:
    check()
  assert "process 7 on host gone since 2020; checking for 0.25 seconds" in caplog.text


def test_who_stood_still_learns_that_the_lease_is_lost(directory):
  theirs = '{"pid": 7, "host": "other", "since": "2020", "token": "x", "renewals": 3}'
  with lock.one_writer(directory) as check:
    check()
    (directory / lock.FILE).write_text(theirs)
    with pytest.raises(UserError, match="was taken over by process 7 on host other"):
      check()
  assert (directory / lock.FILE).read_text() == theirs  # not deleted, not renewed


def test_of_several_that_want_a_lease_at_once_one_gets_it(tmp_path, no_locks):
  for _ in range(3):
    outcomes, barrier, over = [], threading.Barrier(3), threading.Event()

    def want(outcomes=outcomes, barrier=barrier, over=over):
      lease = lock._Lease(tmp_path)
      barrier.wait()
      try:
        with lease:
          outcomes.append("held")
          over.wait(5)
          lease.check()
      except UserError:
        outcomes.append("refused")
      if outcomes.count("refused") == 2:
        over.set()

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused"]
