"""Several processes as one run: how they find each other, agree, and end together."""

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

START_SECONDS = 300  # until all processes have to be there


@contextlib.contextmanager
def initialized(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = 100,
) -> Iterator[None]:
  """In this context the process is one of the run's, if the run has several.

  Comes before anything that asks JAX for its devices. The first three arguments decide, or without
  them what the launcher tells, see `cluster`.

  An exception ends the process here, with its message: Python's own way out waits for the other
  processes, and these wait for this one.

  Args:
    coordinator: "HOST:PORT" of process 0, a port that is free there.
    num_processes: of the run.
    process_id: from 0 to num_processes - 1.
    heartbeat_seconds: after which a silent process counts as dead, and the others end.

  Raises:
    UserError: if some of the arguments are missing or wrong.
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
    logging.getLogger("convmixer_jax").setLevel(logging.WARNING)  # process 0 says the rest
  try:
    yield
  except (SystemExit, KeyboardInterrupt):
    raise  # all of them stop
  except BaseException as error:
    cli.print_error(_last_words(error, index, count))
    if index == 0:
      time.sleep(2)  # without process 0 the others end at once, and may have an error to tell
    os._exit(1)


def _last_words(error: BaseException, index: int, count: int) -> str:
  """What a process says that an exception ends; backends have many for a peer that is gone."""
  name = f"process {index} of {count}"
  if isinstance(error, UserError):
    return f"{name}: error: {error}"
  return (
    f"{''.join(traceback.format_exception(error))}{name} ends with this {type(error).__name__}. It "
    "may come of the end of another process: see what that one said. The same command goes on "
    "from the newest checkpoint"
  )


def _initialize(
  coordinator: str | None, num_processes: int | None, process_id: int | None, heartbeat_seconds: int
) -> bool:
  """Joins the processes; whether there are several."""
  settings: dict[str, Any] = {
    "heartbeat_timeout_seconds": heartbeat_seconds,
    "initialization_timeout": START_SECONDS,
  }
  if coordinator is not None and num_processes is not None and process_id is not None:
    _check(coordinator, num_processes, process_id)
    _log.info(
      "joining as process %d of %d at %s; within %d seconds all have to be there",
      process_id,
      num_processes,
      coordinator,
      START_SECONDS,
    )
    settings |= {
      "coordinator_address": coordinator,
      "num_processes": num_processes,
      "process_id": process_id,
      # No look at the cluster, of whose nodes JAX would take a single GPU for each process.
      "cluster_detection_method": "deactivate",
    }
  elif (coordinator, num_processes, process_id) != (None, None, None):
    raise UserError(
      f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: "
      "give all three, or none of them"
    )
  elif cluster.is_one_of_several(os.environ, _has_tpu()):
    _log.info("joining the other processes; within %d seconds all have to be there", START_SECONDS)
    settings["local_device_ids"] = cluster.local_device_ids(os.environ)
  else:
    return False
  before = signal.getsignal(signal.SIGTERM)
  jax.distributed.initialize(**settings)
  # JAX notes SIGTERM for a protocol of its own, and a process that is still starting would go on.
  signal.signal(signal.SIGTERM, before)
  return True


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as node0:12345")
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id={process_id} is not one of --num_processes={num_processes}: they count from 0"
    )


def _has_tpu() -> bool:
  platforms = os.environ.get("JAX_PLATFORMS", "tpu")
  # JAX sets the variable, when it is imported, on machines without a TPU.
  is_tpu_vm = importlib.util.find_spec("libtpu") and "TPU_SKIP_MDS_QUERY" not in os.environ
  return bool(is_tpu_vm) and "tpu" in platforms


def _mark_log(index: int) -> None:
  """Lines of other processes than the first begin with its number."""

  def mark(record: logging.LogRecord) -> bool:
    if index:
      record.msg = f"process {index}: {record.msg}"
    return True

  absl_logging.get_absl_handler().addFilter(mark)


def all_agree(is_right: bool) -> bool:
  """Whether it is right in every process; all of them have to ask."""
  return bool(multihost_utils.process_allgather(np.array(is_right)).all())


def broadcast(numbers: Sequence[int]) -> list[int]:
  """The numbers that process 0 has, below 2^31; all processes have to ask."""
  count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
  mine = np.resize(np.array(numbers, np.int32), count)  # only process 0's are looked at
  return multihost_utils.broadcast_one_to_all(mine).tolist() if count else []


def broadcast_text(text: str) -> str:
  """The text that process 0 has; all processes have to ask."""
  return bytes(broadcast(list(text.encode()))).decode()


def barrier(name: str) -> None:
  """Until all processes are here; `name` says where."""
  multihost_utils.sync_global_devices(name)
