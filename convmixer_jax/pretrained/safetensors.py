"""Files of the safetensors format, whose package says only what is wrong, not with which file."""

import pathlib

import ml_dtypes  # noqa: F401  # gives NumPy the bfloat16 that files may have
import numpy as np
import safetensors
import safetensors.numpy

from convmixer_jax.errors import UserError


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors by name, of the file's dtypes, and the strings about the file.

  Raises:
    UserError: if the file is truncated, corrupt, has numbers of a kind that NumPy lacks, or is no
      such file.
  """
  try:
    with safetensors.safe_open(path, framework="np") as file:
      names = file.keys()
      return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
  except (safetensors.SafetensorError, AttributeError) as error:
    raise UserError(f"{path} is truncated or corrupt: {error}") from None


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
  """Writes contiguous arrays and the strings about the file, in one piece."""
  partial = path.with_name(f"{path.name}.partial")
  partial.write_bytes(safetensors.numpy.save(arrays, metadata))
  partial.replace(path)
