"""The directory of a run: only one run at a time may write to it, and it describes that run."""

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
  """Context in which only this run writes to the directory.

  Yields:
    A function that raises `UserError` if the run has lost the directory to another process.

  Raises:
    UserError: if the run's processes have different settings, or if the directory is not writable,
      is in use, or holds a run whose config differs from `config`.
  """
  _check_is_one_run(config)
  storage.check_writable(workdir)
  with _one_writer(workdir) as check_ours:
    config_lib.check_resumable(config, workdir / "config.json")
    yield check_ours


def describe(workdir: pathlib.Path, config: config_dict.ConfigDict, names: Sequence[str]) -> None:
  """Writes `config.json` and the class names.

  Raises:
    UserError: if a process cannot see the files.
  """
  path = workdir / "config.json"
  if jax.process_index() == 0:
    config_lib.write_json(config, path)
    class_names.write(workdir, names)
  processes.barrier("config.json is written")
  if not processes.all_agree(path.exists()):
    raise UserError(
      f"{path}, written by process 0, is not visible to every process: --workdir must be on storage"
      " that all of them share"
    )


@contextlib.contextmanager
def _one_writer(workdir: pathlib.Path) -> Iterator[Callable[[], None]]:
  """`lock.one_writer` in process 0; if it fails, all processes raise its error."""
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
  """Checks that all processes have the same config. If not, they would wait forever."""
  digest = zlib.crc32(config_lib.to_json(config).encode()) >> 1  # 31 bits
  if not processes.all_agree([digest] == processes.broadcast([digest])):
    raise UserError("the settings of the run's processes differ: start all with the same ones")
