"""Released weights from the Hugging Face hub."""

import pathlib

from convmixer_jax import names
from convmixer_jax.errors import UserError

_FILE = "model.safetensors"


def fetch(name: str) -> pathlib.Path:
  """The file of a released model's weights, `timm/NAME.in1k`, downloaded unless it is there.

  It lies in huggingface_hub's own cache; that package's HF_HUB_OFFLINE and HF_HOME do what they
  always do.

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
    import huggingface_hub
  except ImportError:
    raise UserError(
      f"fetching {repository} needs a package: pip install huggingface_hub; or {by_hand}"
    ) from None
  try:
    return pathlib.Path(huggingface_hub.hf_hub_download(repository, _FILE))
  except OSError as error:  # no network, offline mode, no access: all of the package's are OSErrors
    reason = str(error).partition("\n")[0]
    raise UserError(
      f"cannot fetch {repository}: {reason} Unset HF_HUB_OFFLINE if it is set, and try again with "
      f"a network; or {by_hand}"
    ) from None
