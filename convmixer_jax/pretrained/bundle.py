"""A model as a directory: `model.json` defines the ConvMixer, `arrays/` has its weights.

If known, `model.json` also has the activation and, as "pretrained_cfg" in timm's format, the
preprocessing and the class names.

The weights are an Orbax checkpoint of {"params", "batch_stats"}, which any program that uses Orbax
can restore.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_utils, checkpointers

from convmixer_jax.errors import UserError
from convmixer_jax.model import variables
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

_PREPROCESSING = "pretrained_cfg"


def is_bundle(path: pathlib.Path) -> bool:
  """Whether `path` is a directory that `save` wrote."""
  return (path / "model.json").is_file()


def save(path: pathlib.Path, trained: TrainedModel) -> None:
  """Writes the directory `path`, which must not exist.

  Raises:
    UserError: if it does.
  """
  if path.exists():
    raise UserError(f"{path} exists already")
  tree = {name: trained.variables[name] for name in ("params", "batch_stats")}
  path.mkdir(parents=True)
  with checkpointers.PyTreeCheckpointer() as checkpointer:
    checkpointer.save((path / "arrays").absolute(), jax.tree.map(jnp.asarray, tree))
  model = trained.model
  attributes = {**variables.identity(model), "in_chans": int(trained.channels)}
  if trained.activation is None:  # the model has an assumed one, which is not stored
    del attributes["activation"]
  if trained.preprocessing is not None:
    attributes[_PREPROCESSING] = trained.preprocessing.to_dict(model.num_classes)
  (path / "model.json").write_text(json.dumps(attributes, indent=2) + "\n")


def load(path: pathlib.Path) -> TrainedModel:
  """Loads what `save` wrote, in float32 on the default device.

  Raises:
    UserError: if a part is missing or corrupt.
  """
  try:
    attributes = json.loads((path / "model.json").read_text())
    channels = attributes.pop("in_chans")
    preprocessing = attributes.pop(_PREPROCESSING, None)
    model = ConvMixer(**attributes)
    if preprocessing is not None:
      preprocessing = Preprocessing.from_dict(preprocessing, model.num_classes, channels)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = variables.shapes(model, channels, here)
    restore = ocp_args.PyTreeRestore(like, checkpoint_utils.construct_restore_args(like))
    with checkpointers.PyTreeCheckpointer() as checkpointer:
      # Check the shapes first: a restore that fails midway leaves other reads of Orbax pending.
      there = checkpointer.metadata((path / "arrays").absolute()).item_metadata.tree
      if _shapes(there) != _shapes(like):
        raise ValueError("the arrays do not match the model in model.json")
      found = checkpointer.restore((path / "arrays").absolute(), args=restore)
    return TrainedModel(model, found, attributes.get("activation"), preprocessing)
  except Exception as error:  # Orbax and its storage layers can raise anything
    reason = str(error).partition("\n")[0]
    raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: tuple(x.shape), tree)
