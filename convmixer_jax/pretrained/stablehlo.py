"""A model as StableHLO: a file for `jax.export`, with its preprocessing in FILE.json next to it.

The file is a `jax.export.Exported`, which cannot hold anything else. The preprocessing and the
class names are therefore in a separate JSON file, in the format of timm's `pretrained_cfg`.
"""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from convmixer_jax.errors import UserError, missing
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained.trained import Preprocessing

Forward = Callable[[jax.Array], jax.Array]


def serialize(model: ConvMixer, variables: Any, image_shape: tuple[int, int, int]) -> bytes:
  """The model in evaluation mode, with its weights, as a serialised `jax.export.Exported`.

  Args:
    model: exported with the default depthwise convolution of each platform.
    variables: {"params", "batch_stats"}.
    image_shape: (height, width, channels); the batch size is symbolic.

  Raises:
    UserError: if the package flatbuffers is missing.
  """
  # None would mean the same here, but in an order of dimensions that is slow on CPU.
  on_cpu, elsewhere = model.clone(depthwise="taps"), model.clone(depthwise="xla")
  variables = jax.tree.map(
    np.asarray, {name: variables[name] for name in ("params", "batch_stats")}
  )

  def forward(image_bhwc: jax.Array) -> jax.Array:
    return lax.platform_dependent(variables, image_bhwc, cpu=on_cpu.apply, default=elsewhere.apply)

  (batch,) = jax.export.symbolic_shape("b")
  image = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
  exported = jax.export.export(jax.jit(forward), platforms=["cpu", "cuda", "tpu"])(image)
  try:
    return bytes(exported.serialize())
  except ImportError as error:  # JAX imports flatbuffers here without depending on it
    raise missing("flatbuffers", "export") from error


def notes_of(path: pathlib.Path) -> pathlib.Path:
  """The JSON file next to `path`, with the preprocessing and the class names."""
  return path.with_name(f"{path.name}.json")


def is_export(path: pathlib.Path) -> bool:
  """Whether `path` is StableHLO from this project, by its suffix or its JSON file."""
  return path.is_file() and (path.suffix == ".stablehlo" or notes_of(path).is_file())


def load(path: pathlib.Path) -> tuple[Forward, Preprocessing]:
  """Loads the computation, which takes normalised images, and the preprocessing.

  Raises:
    UserError: if one of the two files is missing or corrupt.
  """
  call, shape, num_classes = load_computation(path)
  notes = notes_of(path)
  try:
    found = json.loads(notes.read_text())
    preprocessing = Preprocessing.from_dict(found, num_classes, shape[-1])
    if shape != (preprocessing.image_size, preprocessing.image_size, shape[-1]):
      raise ValueError(f"input_size is {found['input_size']}, but the computation takes {shape}")
  except OSError as error:
    raise UserError(
      f"{notes} cannot be read: {error.strerror}. export writes it next to {path.name} if the "
      "weights say how images are preprocessed; copy both"
    ) from None
  except ValueError as error:
    raise UserError(f"{notes} is corrupt or does not belong to {path.name}: {error}") from None
  return call, preprocessing


def load_computation(path: pathlib.Path) -> tuple[Forward, tuple[int, ...], int]:
  """The computation, its image shape (height, width, channels), and its number of classes.

  Raises:
    UserError: if the file is corrupt.
  """
  try:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    (image,), (logits,) = exported.in_avals, exported.out_avals
    return exported.call, tuple(image.shape[1:]), logits.shape[1]
  except Exception as error:  # flatbuffers and MLIR can raise anything
    reason = str(error).partition("\n")[0]
    raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None
