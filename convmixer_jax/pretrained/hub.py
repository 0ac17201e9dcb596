"""Released weights from the Hugging Face hub."""

from collections.abc import Iterator
import contextlib
import errno
import logging
import pathlib
import queue
import threading
from typing import Any

from convmixer_jax.errors import UserError
from convmixer_jax.model import names
from convmixer_jax.native import compiler

_FILE = "model.safetensors"
_SECONDS = 8  # that the hub has to answer in
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)

_log = logging.getLogger(__name__)


def fetch(name: str) -> pathlib.Path:
  """The file of a released model's weights, `timm/NAME.in1k`, downloaded unless it is there.

  It lies in huggingface_hub's own cache; that package's HF_HUB_OFFLINE, HF_HOME and HF_ENDPOINT do
  what they always do. Without a network it fails within seconds.

  Raises:
    UserError: if there are no such weights, or they are neither there nor to be had.
  """
  if name not in names.list_released():
    names.settings_of(name)  # a name that is wrong altogether gets its own message
    released = ", ".join(names.list_released())
    raise UserError(f"{name} has no released weights; there are those of {released}")
  repository = f"timm/{name}.in1k"
  by_hand = (
    f"download {_FILE} from https://huggingface.co/{repository} on a machine with a network and "
    "give its path instead of the name"
  )
  try:
    import huggingface_hub as hub
  except ImportError:
    raise UserError(
      f"fetching {repository} needs a package: pip install huggingface_hub; or {by_hand}"
    ) from None
  there = hub.try_to_load_from_cache(repository, _FILE)
  if isinstance(there, str):
    return pathlib.Path(there)
  try:
    with _quiet():
      _ask(hub, hub.hf_hub_url(repository, _FILE))
      return _download(hub, repository)
  except Exception as error:  # the package's own, of its HTTP library, of the disk
    reason = (str(error).partition("\n")[0] or type(error).__name__).rstrip(".")
    raise UserError(
      f"cannot fetch {repository}: {reason}. Unset HF_HUB_OFFLINE if it is set, and try again with "
      f"a network; or {by_hand}"
    ) from None


def _download(hub: Any, repository: str) -> pathlib.Path:
  """The file in the package's cache; where that cannot be written to, for this process alone."""
  try:
    return pathlib.Path(hub.hf_hub_download(repository, _FILE))
  except OSError as error:
    if error.errno not in _NOT_WRITABLE:
      raise
    _log.warning("the weights cannot be kept for the next start: %s. Set HF_HOME", error)
    return pathlib.Path(hub.hf_hub_download(repository, _FILE, cache_dir=compiler.scratch()))


def _ask(hub: Any, url: str) -> None:
  """Asks for the file's size, once: the download itself would try again for minutes.

  Raises:
    Exception: what went wrong, whatever it is.
    TimeoutError: if there is no answer in time, whatever it is that waits.
  """
  answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

  def ask() -> None:
    try:
      hub.get_hf_file_metadata(url, timeout=_SECONDS)
      answers.put(None)
    except Exception as error:
      answers.put(error)

  threading.Thread(target=ask, daemon=True).start()  # no time-out ends the search for an address
  try:
    error = answers.get(timeout=_SECONDS)
  except queue.Empty:
    error = TimeoutError(f"no answer within {_SECONDS} seconds")
  if error is not None:
    raise error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Inside it huggingface_hub logs no warnings: what goes wrong is said in one line at the end."""
  log = logging.getLogger("huggingface_hub")
  level = log.level
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(level)
