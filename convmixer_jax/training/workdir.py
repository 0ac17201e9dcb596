"""A run's directory: one run at a time has it, and it tells what the run is."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import pathlib
import zlib

import jax
from ml_collections import config_dict

from convmixer_jax import config as config_lib
from convmixer_jax import storage
from convmixer_jax.data import class_names
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import lock, processes


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: config_dict.ConfigDict) -> Iterator[Callable[[], None]]:
  """In this context the directory belongs to this run; gives what raises if it does no more.

  Raises:
    UserError: if the run's processes have different settings, or the directory cannot be written
      to, is in use, or holds a run that differs from `config`.
  """
  _check_is_one_run(config)
  storage.check_writable(workdir)
  with _one_writer(workdir) as check_ours:
    config_lib.check_resumable(config, workdir / "config.json")
    yield check_ours


def describe(workdir: pathlib.Path, config: config_dict.ConfigDict, names: Sequence[str]) -> None:
  """Writes `config.json` and the names of the classes.

  Raises:
    UserError: if a process does not see them.
  """
  path = workdir / "config.json"
  if jax.process_index() == 0:
    config_lib.write_json(config, path)
    class_names.write(workdir, names)
  processes.barrier("config.json is written")
  if not processes.all_agree(path.exists()):
    raise UserError(
      f"{path} of process 0 is not there for every process: --workdir has to be on storage that all"
      " of them share"
    )


@contextlib.contextmanager
def _one_writer(workdir: pathlib.Path) -> Iterator[Callable[[], None]]:
  """`lock.one_writer` in process 0; the others learn whether it has the workdir."""
  with contextlib.ExitStack() as stack:
    message, check = "", lambda: None
    if jax.process_index() == 0:
      try:
        check = stack.enter_context(lock.one_writer(workdir))
      except UserError as error:
        message = str(error)
    if message := processes.broadcast_text(message):
      raise UserError(message)
    yield check


def _check_is_one_run(config: config_dict.ConfigDict) -> None:
  """Processes that compute different things would wait for each other without end."""
  digest = zlib.crc32(config_lib.to_json(config).encode()) >> 1  # 31 bits
  if not processes.all_agree([digest] == processes.broadcast([digest])):
    raise UserError("the settings of the run's processes differ: start all with the same ones")
