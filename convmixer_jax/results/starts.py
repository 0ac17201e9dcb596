"""`starts.jsonl`: when a run was started and ended, on which devices, with which versions."""

from collections.abc import Iterator
import contextlib
import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

import jax

import convmixer_jax
from convmixer_jax import storage
from convmixer_jax.results.history import read_lines

_FILE = "starts.jsonl"
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")


@contextlib.contextmanager
def recorded(workdir: pathlib.Path, step: int) -> Iterator[None]:
  """Context that adds a line when it is entered, and completes it when it is left.

  A process that is killed leaves its line without "ended". Only process 0 writes.

  Args:
    workdir: directory of the run.
    step: the step that the run resumes from.
  """
  if jax.process_index() != 0:
    yield
    return
  before = read_lines(workdir / _FILE)
  line = {"began": _now(), "ended": None, "step": step, **_environment()}

  def write() -> None:
    storage.write_whole(workdir / _FILE, "".join(json.dumps(x) + "\n" for x in [*before, line]))

  write()
  try:
    yield
  finally:
    line["ended"] = _now()
    write()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """One {"began", "ended", "step", "devices", "versions", "commit"} for each start so far."""
  return read_lines(workdir / _FILE)


def seconds(starts: list[dict[str, Any]]) -> float:
  """How long these starts ran together, without those that were killed."""
  spans = [
    datetime.datetime.fromisoformat(x["ended"]) - datetime.datetime.fromisoformat(x["began"])
    for x in starts
    if x["ended"]
  ]
  return sum(span.total_seconds() for span in spans)


def summary(starts: list[dict[str, Any]]) -> dict[str, str]:
  """What a report says of these starts, as {name: text}; empty if there are none."""
  if not starts:
    return {}
  last, count, killed = starts[-1], len(starts), sum(not x["ended"] for x in starts)
  took = f"{datetime.timedelta(seconds=round(seconds(starts)))}"
  if count > 1:
    took += f", in {count} starts"
  if killed:
    were = "was killed or still runs" if killed == 1 else "were killed or still run"
    took += f", without {killed} that {were}"
  versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
  return {
    "started": starts[0]["began"].replace("T", " ").replace("+00:00", " UTC"),
    "duration": took,
    "devices": last["devices"],
    "versions": versions,
    **({"commit": last["commit"]} if last["commit"] else {}),
  }


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _environment() -> dict[str, Any]:
  devices = jax.devices()
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "processes": jax.process_count(),
    "versions": {
      "convmixer_jax": convmixer_jax.__version__,
      "python": platform.python_version(),
      **versions,
    },
    "commit": _commit(),
  }


def _commit() -> str | None:
  """The commit of the checkout that the package is imported from, or None outside of one."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / ".git").exists():
    return None
  command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
  try:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None
