"""PyTorch weights files: `.safetensors` with metadata, and what `torch.save` writes."""

import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

from convmixer_jax.errors import UserError, missing
from convmixer_jax.model import names
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained import pickled, safetensors, state_dict, trained
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

_SAFETENSORS = ".safetensors"
_PICKLED = (".pth", ".pth.tar", ".pt", ".bin")
# Metadata keys, which restore a model as it was saved.
_ACTIVATION, _EPSILON, _PREPROCESSING = "activation", "norm_epsilon", "pretrained_cfg"

_log = logging.getLogger(__name__)


def read(path: pathlib.Path) -> TrainedModel:
  """Reads the model that a file's tensors, metadata and name describe.

  Raises:
    UserError: if it cannot be read, is not a weights file, or is not a ConvMixer.
  """
  arrays, metadata = _content(path)
  try:
    arrays = state_dict.unwrap(arrays)
    notes = _notes(metadata)
    model, variables = state_dict.to_variables(arrays, **notes)
    found = TrainedModel(model, variables, notes.get(_ACTIVATION))
    preprocessing = _noted_preprocessing(metadata, model.num_classes, found.channels)
  except UserError as error:
    raise UserError(f"{path} does not fit: {error}") from None
  name = names.named_in(path.name, model)
  if name is None:
    return dataclasses.replace(found, preprocessing=preprocessing)
  activation = found.activation or names.settings_of(name)["activation"]
  if name in names.list_released() and (model.num_classes, found.channels) == (1000, 3):
    preprocessing = preprocessing or trained.imagenet()
  return TrainedModel(model, variables, activation, preprocessing)


def save(path: str | os.PathLike[str], weights: TrainedModel, *, layout: str = "timm") -> None:
  """Writes weights like `pretrained.save_torch`, but does not store an assumed activation.

  Raises:
    UserError: as in `pretrained.save_torch`.
    ValueError: as in `pretrained.save_torch`.
  """
  path, model = pathlib.Path(path), weights.model
  if not path.name.endswith((_SAFETENSORS, *_PICKLED)):
    allowed = ", ".join((_SAFETENSORS, *_PICKLED))
    raise ValueError(f"path is {str(path)!r}; allowed suffixes: {allowed}")
  if not path.parent.is_dir():
    raise UserError(f"{path.parent} is not a directory; create it first")
  arrays = state_dict.from_variables(model, weights.variables, layout)
  if model.norm_epsilon != ConvMixer.norm_epsilon or model.activation == "gelu_tanh":
    _log.warning(
      "in PyTorch, set BatchNorm's eps=%g and the activation %s: they are not the defaults there, "
      "and weights do not store them",
      model.norm_epsilon,
      model.activation,
    )
  if path.name.endswith(_SAFETENSORS):
    notes = {"format": "pt", _EPSILON: repr(model.norm_epsilon)}
    if weights.activation is not None:
      notes[_ACTIVATION] = weights.activation
    if weights.preprocessing is not None:
      notes[_PREPROCESSING] = json.dumps(weights.preprocessing.to_dict(model.num_classes))
    safetensors.write(path, arrays, notes)
    return
  try:
    import torch
  except ImportError:
    raise UserError(
      f"{missing('torch', 'torch')}; or end the name of {path} in {_SAFETENSORS}"
    ) from None
  partial = path.with_name(f"{path.name}.partial")
  torch.save({key: torch.tensor(array) for key, array in arrays.items()}, partial)
  partial.replace(path)


def _content(path: pathlib.Path) -> tuple[Any, dict[str, str]]:
  """The content and the metadata of a file in any format."""
  if path.is_dir():
    raise UserError(f"{path} is a directory, but not the workdir of a run: it has no config.json")
  try:
    with path.open("rb") as file:
      start = file.read(16)
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from None
  if not start:
    raise UserError(f"{path} is empty")
  if start.startswith(b"PK"):
    return pickled.read(path), {}
  if start[8:9] == b"{":
    return safetensors.read(path)
  if start.startswith(b"\x80"):
    raise UserError(
      f"{path} is a bare pickle, which is not supported. If PyTorch before 1.6 wrote it, "
      "convert it: python -c 'import sys, torch; torch.save(torch.load(sys.argv[1], "
      "weights_only=True), sys.argv[2])' OLD NEW"
    )
  raise UserError(f"{path} is not a weights file: neither safetensors nor PyTorch's format")


def _notes(metadata: dict[str, str]) -> dict[str, Any]:
  """Attributes of `ConvMixer` that `save_torch` stored as metadata."""
  notes: dict[str, Any] = {}
  if _ACTIVATION in metadata:
    notes[_ACTIVATION] = metadata[_ACTIVATION]
    if notes[_ACTIVATION] not in ACTIVATIONS:
      raise UserError(
        f"the metadata's {_ACTIVATION} is {notes[_ACTIVATION]!r}; allowed: {', '.join(ACTIVATIONS)}"
      )
  if _EPSILON in metadata:
    try:
      notes[_EPSILON] = float(metadata[_EPSILON])
    except ValueError:
      raise UserError(
        f"the metadata's {_EPSILON} is {metadata[_EPSILON]!r}, not a number"
      ) from None
  return notes


def _noted_preprocessing(
  metadata: dict[str, str], num_classes: int, channels: int
) -> Preprocessing | None:
  if _PREPROCESSING not in metadata:
    return None
  try:
    return Preprocessing.from_dict(json.loads(metadata[_PREPROCESSING]), num_classes, channels)
  except ValueError as error:
    raise UserError(f"the metadata's {_PREPROCESSING} is invalid: {error}") from None
