"""A model as StableHLO: a file for `jax.export`, and beside it FILE.json about its images.

The file is one `jax.export.Exported`, which has no place for anything else. What the images need
and what the classes are called is therefore JSON of its own, which programs in any language can
read: the object that timm calls `pretrained_cfg`.
"""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained.trained import Preprocessing

Forward = Callable[[jax.Array], jax.Array]


def serialize(model: ConvMixer, variables: Any, image_shape: tuple[int, int, int]) -> bytes:
  """The evaluation of a model as a serialised `jax.export.Exported`, its weights included.

  Args:
    model: exported with the convolution of each platform.
    variables: {"params", "batch_stats"}.
    image_shape: (height, width, channels); the batch is of any size.

  Raises:
    UserError: if the package flatbuffers is missing.
  """
  portable = model.clone(depthwise=None)  # which in exports means operations that every JAX has
  variables = jax.tree.map(
    np.asarray, {name: variables[name] for name in ("params", "batch_stats")}
  )

  def forward(image_bhwc: jax.Array) -> jax.Array:
    return jnp.asarray(portable.apply(variables, image_bhwc))

  (batch,) = jax.export.symbolic_shape("b")
  image = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
  exported = jax.export.export(jax.jit(forward), platforms=["cpu", "cuda", "tpu"])(image)
  try:
    return bytes(exported.serialize())
  except ImportError as error:  # JAX imports flatbuffers, which it does not depend on, only here
    raise UserError(f"StableHLO needs a package: pip install flatbuffers ({error})") from None


def notes_of(path: pathlib.Path) -> pathlib.Path:
  """The file beside `path` that says what the images need."""
  return path.with_name(f"{path.name}.json")


def is_export(path: pathlib.Path) -> bool:
  """Whether `path` is StableHLO that this project wrote, by its name or the file beside it."""
  return path.is_file() and (path.suffix == ".stablehlo" or notes_of(path).is_file())


def load(path: pathlib.Path) -> tuple[Forward, Preprocessing]:
  """The computation, of normalised images, and what the images need.

  Raises:
    UserError: if one of the two files is missing or corrupt.
  """
  call, shape, num_classes = load_computation(path)
  notes = notes_of(path)
  try:
    found = json.loads(notes.read_text())
    preprocessing = Preprocessing.from_dict(found, num_classes, shape[-1])
    if shape != (preprocessing.image_size, preprocessing.image_size, shape[-1]):
      raise ValueError(f"input_size is {found['input_size']}, the computation's images are {shape}")
  except OSError as error:
    raise UserError(
      f"{notes} cannot be read: {error.strerror}. export writes it beside {path.name}, where the "
      "weights tell how images are preprocessed; copy both"
    ) from None
  except ValueError as error:
    raise UserError(f"{notes} is corrupt or not of {path.name}: {error}") from None
  return call, preprocessing


def load_computation(path: pathlib.Path) -> tuple[Forward, tuple[int, ...], int]:
  """The computation, the shape (height, width, channels) of its images, and its classes.

  Raises:
    UserError: if the file is corrupt.
  """
  try:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    (image,), (logits,) = exported.in_avals, exported.out_avals
    return exported.call, tuple(image.shape[1:]), logits.shape[1]
  except Exception as error:  # whatever flatbuffers and MLIR raise
    reason = str(error).partition("\n")[0]
    raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None
