"""Loading and saving trained weights: PyTorch files, released models, and workdirs of runs.

`load` and `load_torch` return a model and its variables. `read` also returns its preprocessing and
its class names.
"""

import dataclasses
import logging
import os
import pathlib
from typing import Any

from convmixer_jax import storage
from convmixer_jax.errors import UserError
from convmixer_jax.model import names
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained import bundle, files, hub, trained
from convmixer_jax.pretrained.files import save
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

__all__ = ["load", "load_torch", "read", "save", "save_torch", "told"]

_log = logging.getLogger(__name__)


def load(
  source: str | os.PathLike[str], *, activation: str | None = None
) -> tuple[ConvMixer, dict[str, Any]]:
  """Loads a trained model and its float32 variables {"params", "batch_stats"}; see `read`."""
  found = read(source, activation=activation)
  return found.model, found.variables


def read(source: str | os.PathLike[str], *, activation: str | None = None) -> TrainedModel:
  """Reads a trained model: what `load` returns, and its preprocessing.

  Args:
    source: a file, as in `load_torch`; the workdir of a run (its latest readable checkpoint); a
      directory that `bundle.save` wrote; or the name of a released model, also as
      "timm/NAME.in1k".
    activation: overrides the source's. None uses the source's; if it states none, "gelu" is
      assumed, with a warning.

  Raises:
    UserError: if the source does not exist, cannot be read or fetched, or does not fit.
    ValueError: if the activation is unknown.
  """
  if activation is not None and activation not in ACTIVATIONS:
    raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
  found = told(source)
  activation = activation or found.activation
  if activation is None:
    _log.warning(
      "%s does not state its activation; assuming 'gelu'. If that is wrong, as for the released "
      "768/32, set --activation=relu (in Python: activation='relu') or another one",
      source,
    )
  model = found.model.clone(activation=activation or "gelu")
  return dataclasses.replace(found, model=model, activation=activation)


def told(source: str | os.PathLike[str]) -> TrainedModel:
  """What a source states: like `read`, but assumes no activation and does not warn.

  Raises:
    UserError: as in `read`.
  """
  path = storage.path_of(source)
  if (path / "config.json").is_file():
    from convmixer_jax.pretrained import workdir  # imports the data pipeline and Orbax

    return workdir.read(path)
  if bundle.is_bundle(path):
    return bundle.load(path)
  if path.exists():
    return files.read(path)
  name = str(source).removeprefix("timm/").removesuffix(".in1k")
  if name not in names.list_models():
    raise UserError(
      f"{str(source)!r} is not a file, the workdir of a run, or a model: {names.nearest(name)}"
    )
  activation = names.settings_of(name)["activation"]
  found = files.read(hub.fetch(name))
  model = found.model.clone(activation=activation)
  return TrainedModel(model, found.variables, activation, trained.imagenet())


def load_torch(
  path: str | os.PathLike[str], *, activation: str | None = None
) -> tuple[ConvMixer, dict[str, Any]]:
  """Loads a model and its float32 variables from a PyTorch weights file; executes nothing in it.

  The sizes, the number of classes and the layout (timm's, or the authors' `nn.Sequential`) are
  inferred from the tensors. From a training checkpoint it takes the averaged (EMA) weights if
  present, as timm does. Every variable is read from the file, and every tensor in the file except
  BatchNorm's counters is used.

  Args:
    path: `.safetensors`, or what `torch.save` writes (`.pth`, `.pth.tar`, `.bin`, ...). The format
      is detected from the content, not the name.
    activation: the activation, which tensors do not determine. None takes the one that
      `save_torch` stored in the file, else that of the model the file is named after, else
      "gelu", with a warning.

  Raises:
    UserError: naming the file and the tensor that does not fit, with both shapes.
    ValueError: if the activation is unknown.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    files.read(path)  # raises the error that says why
  return load(path, activation=activation)


def save_torch(
  path: str | os.PathLike[str],
  model: ConvMixer,
  variables: Any,
  *,
  layout: str = "timm",
  preprocessing: Preprocessing | None = None,
) -> None:
  """Writes the variables as a float32 state_dict for PyTorch, atomically.

  Args:
    path: `.safetensors`, which also stores the activation, BatchNorm's epsilon and the
      preprocessing as metadata; or `.pth`, `.pth.tar`, `.pt` or `.bin`, which have no metadata and
      require PyTorch.
    model: the model of the variables.
    variables: {"params", "batch_stats"}.
    layout: names of the tensors: "timm", or "sequential" (the authors').
    preprocessing: preprocessing and class names, if known.

  Raises:
    UserError: if the variables do not match the model, or if the directory or PyTorch is missing.
    ValueError: if `layout` or the suffix is not allowed.
  """
  save(path, TrainedModel(model, variables, model.activation, preprocessing), layout=layout)
