"""Safetensors files, with errors that name the file, which those of the package do not."""

import pathlib

import ml_dtypes  # noqa: F401  # adds bfloat16 to NumPy
import numpy as np
import safetensors
import safetensors.numpy

from convmixer_jax.errors import UserError


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads the tensors by name, in the file's dtypes, and the metadata.

  Raises:
    UserError: if the file is truncated, corrupt, in another format, or has a dtype that NumPy
      lacks.
  """
  try:
    with safetensors.safe_open(path, framework="np") as file:
      names = file.keys()
      return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
  except (safetensors.SafetensorError, AttributeError) as error:
    raise UserError(f"{path} is truncated or corrupt: {error}") from None


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
  """Writes contiguous arrays and the metadata, atomically."""
  partial = path.with_name(f"{path.name}.partial")
  partial.write_bytes(safetensors.numpy.save(arrays, metadata))
  partial.replace(path)
