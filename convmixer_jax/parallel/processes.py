"""Runs of several processes: initialization, agreement, and a common end."""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import logging
import os
import signal
import time
import traceback
from typing import Any

from absl import logging as absl_logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from convmixer_jax import cli
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import cluster

_log = logging.getLogger(__name__)

START_SECONDS = 300  # timeout for all processes to join


@contextlib.contextmanager
def initialized(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = 100,
) -> Iterator[None]:
  """Context in which this process has joined the others of its run, if there are several.

  Enter it before anything else asks JAX for its devices. Without the first three arguments, the
  launcher's environment variables are used, see `cluster`.

  An exception inside it prints its message and ends the process immediately: Python's own exit
  would wait for the other processes, which wait for this one.

  Args:
    coordinator: "HOST:PORT" of process 0, where PORT is free.
    num_processes: number of processes of the run.
    process_id: from 0 to num_processes - 1.
    heartbeat_seconds: a process that is silent for this long is dead, and the others end.

  Raises:
    UserError: if some of the first three arguments are missing, or one is invalid.
  """
  if not _initialize(coordinator, num_processes, process_id, heartbeat_seconds):
    yield
    return
  index, count = jax.process_index(), jax.process_count()
  _mark_log(index)
  _log.info(
    "process %d of %d, with %d of %d devices: %s",
    index,
    count,
    jax.local_device_count(),
    jax.device_count(),
    jax.devices()[0].device_kind,
  )
  if index:
    logging.getLogger("convmixer_jax").setLevel(logging.WARNING)  # process 0 logs the rest
  try:
    yield
  except (SystemExit, KeyboardInterrupt):
    raise  # all processes stop
  except BaseException as error:
    cli.print_error(_last_words(error, index, count))
    if index == 0:
      time.sleep(2)  # without process 0, the others end before they can print their own errors
    os._exit(1)


def _last_words(error: BaseException, index: int, count: int) -> str:
  """The message for an exception that ends a process; a lost peer can cause many types of them."""
  name = f"process {index} of {count}"
  if isinstance(error, UserError):
    return f"{name}: error: {error}"
  return (
    f"{''.join(traceback.format_exception(error))}{name} ends with this {type(error).__name__}. "
    "The cause may be that another process ended: see its output. Re-running the same command "
    "resumes from the latest checkpoint"
  )


def _initialize(
  coordinator: str | None, num_processes: int | None, process_id: int | None, heartbeat_seconds: int
) -> bool:
  """Joins the other processes of the run; returns whether it has several."""
  settings: dict[str, Any] = {
    "heartbeat_timeout_seconds": heartbeat_seconds,
    "initialization_timeout": START_SECONDS,
  }
  if coordinator is not None and num_processes is not None and process_id is not None:
    _check(coordinator, num_processes, process_id)
    _log.info(
      "joining as process %d of %d at %s; all have to join within %d seconds",
      process_id,
      num_processes,
      coordinator,
      START_SECONDS,
    )
    settings |= {
      "coordinator_address": coordinator,
      "num_processes": num_processes,
      "process_id": process_id,
      # With cluster detection, JAX would use a single GPU per process.
      "cluster_detection_method": "deactivate",
    }
  elif (coordinator, num_processes, process_id) != (None, None, None):
    raise UserError(
      f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: "
      "give all three, or none of them"
    )
  elif cluster.is_one_of_several(os.environ, _has_tpu()):
    _log.info("joining the other processes; all have to join within %d seconds", START_SECONDS)
    settings["local_device_ids"] = cluster.local_device_ids(os.environ)
  else:
    return False
  before = signal.getsignal(signal.SIGTERM)
  jax.distributed.initialize(**settings)
  # JAX catches SIGTERM for a protocol of its own, so it would not stop a process during start-up.
  signal.signal(signal.SIGTERM, before)
  return True


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as node0:12345")
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id={process_id} must be at least 0 and less than --num_processes={num_processes}"
    )


def _has_tpu() -> bool:
  platforms = os.environ.get("JAX_PLATFORMS", "tpu")
  # On machines without a TPU, JAX sets this variable when it is imported.
  is_tpu_vm = importlib.util.find_spec("libtpu") and "TPU_SKIP_MDS_QUERY" not in os.environ
  return bool(is_tpu_vm) and "tpu" in platforms


def _mark_log(index: int) -> None:
  """Prefixes log lines with the index of the process, except in process 0."""

  def mark(record: logging.LogRecord) -> bool:
    if index:
      record.msg = f"process {index}: {record.msg}"
    return True

  absl_logging.get_absl_handler().addFilter(mark)


def all_agree(is_right: bool) -> bool:
  """Whether `is_right` is true in every process; all processes must call this."""
  return bool(multihost_utils.process_allgather(np.array(is_right)).all())


def broadcast(numbers: Sequence[int]) -> list[int]:
  """The numbers of process 0, each below 2^31; all processes must call this."""
  count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
  mine = np.resize(np.array(numbers, np.int32), count)  # ignored except in process 0
  return multihost_utils.broadcast_one_to_all(mine).tolist() if count else []


def broadcast_text(text: str) -> str:
  """The text of process 0; all processes must call this."""
  return bytes(broadcast(list(text.encode()))).decode()


def barrier(name: str) -> None:
  """Waits until all processes have called this with the same `name`."""
  multihost_utils.sync_global_devices(name)
