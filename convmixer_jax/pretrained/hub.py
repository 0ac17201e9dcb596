"""Released weights from the Hugging Face hub."""

from collections.abc import Iterator
import contextlib
import errno
import logging
import pathlib
import queue
import threading
from typing import Any

from convmixer_jax.errors import UserError, missing
from convmixer_jax.model import names
from convmixer_jax.native import compiler

_FILE = "model.safetensors"
_SECONDS = 8  # timeout for the hub's response
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)

_log = logging.getLogger(__name__)


def fetch(name: str) -> pathlib.Path:
  """The weights file of a released model, `timm/NAME.in1k`, downloaded unless cached.

  It is stored in the cache of huggingface_hub, which honours HF_HUB_OFFLINE, HF_HOME and
  HF_ENDPOINT as usual. Without a network it fails within seconds.

  Raises:
    UserError: if there are no such weights, or they are not cached and cannot be downloaded.
  """
  if name not in names.list_released():
    names.settings_of(name)  # an unknown name raises its own message
    released = ", ".join(names.list_released())
    raise UserError(f"{name} has no released weights; available: {released}")
  repository = f"timm/{name}.in1k"
  by_hand = (
    f"download {_FILE} from https://huggingface.co/{repository} on a machine with a network and "
    "give its path instead of the name"
  )
  try:
    import huggingface_hub as hub
  except ImportError:
    raise UserError(f"{missing('huggingface_hub', 'hub')}; or {by_hand}") from None
  there = hub.try_to_load_from_cache(repository, _FILE)
  if isinstance(there, str):
    return pathlib.Path(there)
  try:
    with _quiet():
      _ask(hub, hub.hf_hub_url(repository, _FILE))
      return _download(hub, repository)
  except Exception as error:  # from the package, its HTTP library, or the disk
    reason = (str(error).partition("\n")[0] or type(error).__name__).rstrip(".")
    raise UserError(
      f"cannot fetch {repository}: {reason}. Unset HF_HUB_OFFLINE if it is set, and retry with "
      f"network access; or {by_hand}"
    ) from None


def _download(hub: Any, repository: str) -> pathlib.Path:
  """Downloads into the package's cache, or a temporary directory if that is not writable."""
  try:
    return pathlib.Path(hub.hf_hub_download(repository, _FILE))
  except OSError as error:
    if error.errno not in _NOT_WRITABLE:
      raise
    _log.warning(
      "the weights cannot be cached for the next start: %s. Set HF_HOME to a writable directory",
      error,
    )
    return pathlib.Path(hub.hf_hub_download(repository, _FILE, cache_dir=compiler.scratch()))


def _ask(hub: Any, url: str) -> None:
  """Requests the file's metadata once, because the download itself would retry for minutes.

  Raises:
    Exception: whatever the request raises.
    TimeoutError: if there is no response in time, for any reason.
  """
  answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

  def ask() -> None:
    try:
      hub.get_hf_file_metadata(url, timeout=_SECONDS)
      answers.put(None)
    except Exception as error:
      answers.put(error)

  threading.Thread(target=ask, daemon=True).start()  # DNS lookups ignore the timeout
  try:
    error = answers.get(timeout=_SECONDS)
  except queue.Empty:
    error = TimeoutError(f"no response within {_SECONDS} seconds")
  if error is not None:
    raise error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences warnings of huggingface_hub; `fetch` reports errors in one line instead."""
  log = logging.getLogger("huggingface_hub")
  level = log.level
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(level)
