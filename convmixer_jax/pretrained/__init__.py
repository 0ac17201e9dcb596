"""Trained weights in and out: files of PyTorch, released models, and workdirs of our own runs.

`load` and `load_torch` give a model and its variables, `read` also how its images are preprocessed
and what its classes are called.
"""

import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import storage
from convmixer_jax.errors import UserError
from convmixer_jax.model import names
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained import bundle, hub, pickled, safetensors, state_dict, trained
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

_SAFETENSORS = ".safetensors"
_PICKLED = (".pth", ".pth.tar", ".pt", ".bin")
# What files hold besides weights, so that a model comes back as it was saved.
_ACTIVATION, _EPSILON, _PREPROCESSING = "activation", "norm_epsilon", "pretrained_cfg"

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
    return _read_workdir(path)
  if bundle.is_bundle(path):
    return bundle.load(path)
  if path.exists():
    return _read_file(path)
  name = str(source).removeprefix("timm/").removesuffix(".in1k")
  if name not in names.list_models():
    raise UserError(
      f"{str(source)!r} is no file, no workdir of a run, and no model: {names.nearest(name)}"
    )
  activation = names.settings_of(name)["activation"]
  found = _read_file(hub.fetch(name))
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
    _read(path)  # says why
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


def save(path: str | os.PathLike[str], weights: TrainedModel, *, layout: str = "timm") -> None:
  """Writes what `read` gave, as `save_torch`; an activation that was only assumed is not noted.

  Raises:
    UserError: as in `save_torch`.
    ValueError: as in `save_torch`.
  """
  path, model = pathlib.Path(path), weights.model
  if not path.name.endswith((_SAFETENSORS, *_PICKLED)):
    allowed = ", ".join((_SAFETENSORS, *_PICKLED))
    raise ValueError(f"path is {str(path)!r}; allowed endings: {allowed}")
  if not path.parent.is_dir():
    raise UserError(f"{path.parent} is no directory; make it first")
  arrays = state_dict.from_variables(model, weights.variables, layout)
  if model.norm_epsilon != ConvMixer.norm_epsilon or model.activation == "gelu_tanh":
    _log.warning(
      "give the model in PyTorch BatchNorm's eps=%g and the activation %s: they are not its usual "
      "ones, and weights do not tell",
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
      f"{path} needs PyTorch to be written: pip install torch; or end its name in {_SAFETENSORS}"
    ) from None
  partial = path.with_name(f"{path.name}.partial")
  torch.save({key: torch.tensor(array) for key, array in arrays.items()}, partial)
  partial.replace(path)


def replace_head(
  model: ConvMixer, variables: Any, num_classes: int, seed: int = 0
) -> tuple[ConvMixer, dict[str, Any]]:
  """The same with so many classes; where that is another number, the head is drawn at random.

  Args:
    model: any.
    variables: its {"params", "batch_stats"}, which are not changed.
    num_classes: 0 for no head.
    seed: of the new head.
  """
  if num_classes == model.num_classes:
    return model, variables
  params = {name: value for name, value in variables["params"].items() if name != "head"}
  changed = model.clone(num_classes=num_classes)
  if num_classes:
    image_bhwc = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    fresh = changed.clone(depth=0).init(jax.random.key(seed), image_bhwc)
    params["head"] = fresh["params"]["head"]
  _log.info(
    "the head for %d classes was left out, %s",
    model.num_classes,
    f"that for {num_classes} is fresh" if num_classes else "there is no other",
  )
  return changed, {**variables, "params": params}


def _read(path: pathlib.Path) -> tuple[Any, dict[str, str]]:
  """What a file of any kind holds, and its notes."""
  if path.is_dir():
    raise UserError(f"{path} is a directory, but no workdir of a run: it has no config.json")
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
      f"{path} is a bare pickle, perhaps PyTorch's from before 1.6, which is not read. If it is, "
      "convert it: python -c 'import sys, torch; torch.save(torch.load(sys.argv[1], "
      "weights_only=True), sys.argv[2])' OLD NEW"
    )
  raise UserError(f"{path} is no file of weights: neither safetensors nor PyTorch's")


def _read_file(path: pathlib.Path) -> TrainedModel:
  """What a file of PyTorch weights tells, by its tensors, its notes and its name."""
  arrays, metadata = _read(path)
  try:
    arrays = state_dict.unwrap(arrays)
    notes = _notes(metadata)
    model, variables = state_dict.to_variables(arrays, **notes)
    found = TrainedModel(model, variables, notes.get(_ACTIVATION))
    preprocessing = _noted_preprocessing(metadata, model.num_classes, found.channels)
  except UserError as error:
    raise UserError(f"{path} does not fit: {error}") from None
  sizes = {key: getattr(model, key) for key in ("dim", "depth", "kernel_size", "patch_size")}
  name = names.named_in(path.name, sizes)
  if name is None:
    return dataclasses.replace(found, preprocessing=preprocessing)
  activation = found.activation or names.settings_of(name)["activation"]
  if name in names.list_released() and (model.num_classes, found.channels) == (1000, 3):
    preprocessing = preprocessing or trained.imagenet()
  return TrainedModel(model, variables, activation, preprocessing)


def _notes(metadata: dict[str, str]) -> dict[str, Any]:
  """Attributes of `ConvMixer` that `save_torch` noted."""
  notes: dict[str, Any] = {}
  if _ACTIVATION in metadata:
    notes[_ACTIVATION] = metadata[_ACTIVATION]
    if notes[_ACTIVATION] not in ACTIVATIONS:
      raise UserError(f"{_ACTIVATION} is noted as {notes[_ACTIVATION]!r}, which is unknown")
  if _EPSILON in metadata:
    try:
      notes[_EPSILON] = float(metadata[_EPSILON])
    except ValueError:
      raise UserError(f"{_EPSILON} is noted as {metadata[_EPSILON]!r}, no number") from None
  return notes


def _noted_preprocessing(
  metadata: dict[str, str], num_classes: int, channels: int
) -> Preprocessing | None:
  if _PREPROCESSING not in metadata:
    return None
  try:
    return Preprocessing.from_dict(json.loads(metadata[_PREPROCESSING]), num_classes, channels)
  except ValueError as error:
    raise UserError(f"{_PREPROCESSING} is noted wrongly: {error}") from None


def _read_workdir(workdir: pathlib.Path) -> TrainedModel:
  """Of a run, the model and the variables of the newest checkpoint that can be read."""
  from convmixer_jax import config as config_lib
  from convmixer_jax.checkpoint import manager  # only now: Orbax takes long to import

  config = config_lib.read_json(workdir / "config.json")
  config_lib.validate(config)
  model = ConvMixer(**{**config.model, "dtype": jnp.dtype(config.model.dtype)})
  shape = (1, model.patch_size, model.patch_size, len(config.augment.mean))
  like = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(lambda x: x.update(sharding=here), like)
  variables, step = manager.restore(workdir, like)
  _log.info("%s: weights after step %d", workdir, step)
  preprocessing = trained.preprocessing_of(config, workdir)
  return TrainedModel(model, variables, model.activation, preprocessing)
