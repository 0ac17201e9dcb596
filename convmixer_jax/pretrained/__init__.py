"""Trained weights in and out: files of PyTorch, released models, and workdirs of our own runs.

`load` and `load_torch` give a model and its variables, `read` also how its images are preprocessed
and what its classes are called.
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
  """A trained model and its float32 variables {"params", "batch_stats"}; see `read`."""
  found = read(source, activation=activation)
  return found.model, found.variables


def read(source: str | os.PathLike[str], *, activation: str | None = None) -> TrainedModel:
  """A trained model: what `load` gives, and how its images are preprocessed.

  Args:
    source: a file, as in `load_torch`; the workdir of a run, of which the newest checkpoint that
      can be read is taken; a directory that `bundle.save` wrote; or the name of a released model,
      also as "timm/NAME.in1k".
    activation: instead of the source's. None for the source's; if it does not tell it, "gelu" is
      assumed, with a warning.

  Raises:
    UserError: if there is no such source, it cannot be read or fetched, or does not fit.
    ValueError: if `ConvMixer` does not know the activation.
  """
  if activation is not None and activation not in ACTIVATIONS:
    raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
  found = told(source)
  activation = activation or found.activation
  if activation is None:
    _log.warning(
      "%s does not tell its activation; 'gelu' is assumed. Give --activation=relu or another, in "
      "Python activation='relu', if that is wrong, as it is for the released 768/32",
      source,
    )
  model = found.model.clone(activation=activation or "gelu")
  return dataclasses.replace(found, model=model, activation=activation)


def told(source: str | os.PathLike[str]) -> TrainedModel:
  """What a source tells; `read` without its assumption and its warning.

  Raises:
    UserError: as in `read`.
  """
  path = storage.path_of(source)
  if (path / "config.json").is_file():
    from convmixer_jax.pretrained import workdir  # only now: it brings the data and Orbax

    return workdir.read(path)
  if bundle.is_bundle(path):
    return bundle.load(path)
  if path.exists():
    return files.read(path)
  name = str(source).removeprefix("timm/").removesuffix(".in1k")
  if name not in names.list_models():
    raise UserError(
      f"{str(source)!r} is no file, no workdir of a run, and no model: {names.nearest(name)}"
    )
  activation = names.settings_of(name)["activation"]
  found = files.read(hub.fetch(name))
  model = found.model.clone(activation=activation)
  return TrainedModel(model, found.variables, activation, trained.imagenet())


def load_torch(
  path: str | os.PathLike[str], *, activation: str | None = None
) -> tuple[ConvMixer, dict[str, Any]]:
  """The model and its float32 variables from a file of PyTorch weights; runs no code of the file's.

  Sizes, classes and layout (timm's, or the authors' `nn.Sequential`) are told by the tensors. Of a
  training's checkpoint the averaged weights are taken if it has some, as in timm. Every variable
  comes from the file, and every tensor of the file but BatchNorm's counters is used.

  Args:
    path: `.safetensors`, or what `torch.save` writes (`.pth`, `.pth.tar`, `.bin`, ...); the file's
      content decides, not its name.
    activation: the model's, which weights do not tell. None for what `save_torch` noted in the
      file, else for that of the named model that the file's name tells, else for "gelu", with a
      warning.

  Raises:
    UserError: naming the file and the tensor that does not fit, with both shapes.
    ValueError: if `ConvMixer` does not know the activation.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    files.read(path)  # says why
  return load(path, activation=activation)


def save_torch(
  path: str | os.PathLike[str],
  model: ConvMixer,
  variables: Any,
  *,
  layout: str = "timm",
  preprocessing: Preprocessing | None = None,
) -> None:
  """Writes the variables as a float32 state_dict for PyTorch, in one piece.

  Args:
    path: `.safetensors`, in which activation, BatchNorm's epsilon and preprocessing are noted, too;
      or `.pth`, `.pth.tar`, `.pt` or `.bin`, which have no place for notes, and for which PyTorch
      has to be installed.
    model: whose variables they are.
    variables: {"params", "batch_stats"}.
    layout: of the names, "timm" or "sequential", which is the authors'.
    preprocessing: of the model's images, and the names of its classes, if they are known.

  Raises:
    UserError: if the variables are not the model's, the directory is missing, or PyTorch is.
    ValueError: if `layout` or the file's ending is not allowed.
  """
  save(path, TrainedModel(model, variables, model.activation, preprocessing), layout=layout)
