"""The weights `config.init_from`, to initialize a run with or to evaluate."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from convmixer_jax import pretrained
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.data import class_names
from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError
from convmixer_jax.model.variables import SIZES
from convmixer_jax.parallel import sharding
from convmixer_jax.pretrained.trained import Preprocessing

_log = logging.getLogger(__name__)

Variables = dict[str, Any]


def read(config: config_dict.ConfigDict, with_head: bool = False) -> Variables:
  """Reads the variables from `config.init_from`: a file, the name of a model, or a workdir.

  Args:
    config: see `config.base`. Its model must be that of the weights, and so must its mean and std
      if the weights state theirs. Weights that do not state an activation get the config's.
    with_head: reject weights for other classes than those of `config.data.eval_split`. Otherwise
      weights for another number of classes are returned without their head.

  Raises:
    UserError: if they cannot be read, or do not match the config; names each such setting.
  """
  source = config.init_from
  weights = pretrained.told(source)
  model, variables = weights.model, weights.variables
  found = {  # what must agree for the weights to compute the same function
    f"config.model.{name}": (config.model[name], getattr(model, name))
    for name in (*SIZES, "norm_epsilon")
  }
  activation = config.model.activation
  found["config.model.activation"] = (activation, weights.activation or activation)
  channels = len(config.augment.mean), weights.channels
  found["the number of channels in config.augment.mean"] = channels
  if with_head:
    found["config.model.num_classes"] = (config.model.num_classes, model.num_classes)
  wrong = [f"{name} is {ours}, not {theirs}" for name, (ours, theirs) in found.items()
           if ours != theirs]  # fmt: skip
  if wrong:
    raise UserError(
      f"config.init_from={source} does not match the config: {'; '.join(wrong)}. Set these as in "
      "the weights"
    )
  if weights.preprocessing is not None:
    _check_preprocessing(config, weights.preprocessing)
    if with_head:
      _check_classes(config, weights.preprocessing)
  if model.num_classes == config.model.num_classes:
    _log.info("initialized all weights, including the head, from %s", source)
    return variables
  _log.info(
    "initialized the weights from %s, except for a new head of %d classes: it has %d",
    source,
    config.model.num_classes,
    model.num_classes,
  )
  backbone = {name: x for name, x in variables["params"].items() if name != "head"}
  return {**variables, "params": backbone}


def _check_preprocessing(config: config_dict.ConfigDict, told: Preprocessing) -> None:
  """Rejects weights that were trained on images with another normalisation."""
  ours = {name: tuple(config.augment[name]) for name in ("mean", "std")}
  theirs = {"mean": told.mean, "std": told.std}
  if ours != theirs:
    flags = " ".join(f"'--config.augment.{name}={value}'" for name, value in theirs.items())
    raise UserError(
      f"config.init_from={config.init_from} is for images with the mean {told.mean} and the std "
      f"{told.std}, but config.augment has the mean {ours['mean']} and the std {ours['std']}: "
      f"set {flags}"
    )
  if told.image_size != config.data.image_size:
    _log.info(
      "%s is for images of %d pixels; config.data.image_size is %d",
      config.init_from,
      told.image_size,
      config.data.image_size,
    )


def _check_classes(config: config_dict.ConfigDict, told: Preprocessing) -> None:
  """Rejects weights whose labels stand for other classes, which would make the metrics wrong."""
  if told.class_names is None:
    return
  c = config.data
  names = class_names.readable(open_source(c.dataset, c.eval_split, c.data_dir).class_names)
  if len(names) != len(told.class_names):
    return  # a wrong config.model.num_classes, which `build.open_split` reports
  for label, (theirs, ours) in enumerate(zip(told.class_names, names, strict=True)):
    if theirs != ours:
      raise UserError(
        f"label {label} is {theirs!r} in config.init_from={config.init_from}, but {ours!r} in "
        f"config.data.dataset={c.dataset}: evaluate on data with the same class names in the same "
        "order as the weights"
      )


def begin(state: TrainState, weights: Variables) -> TrainState:
  """Puts the weights into a fresh `state`; if they have no head, the fresh one is kept."""

  def placed(values: Variables, likes: Variables) -> Variables:
    likes = {name: likes[name] for name in values}
    return jax.tree.map(
      lambda x, like: sharding.device_put(np.asarray(x, like.dtype), like.sharding), values, likes
    )

  def copy() -> Variables:  # the step donates the state, so no two arrays may share memory
    params = jax.tree.map(jnp.copy, state.params)
    return {
      "params": {**params, **placed(weights["params"], state.params)},
      "batch_stats": placed(weights["batch_stats"], state.batch_stats),
    }

  return state.replace(**copy(), ema=None if state.ema is None else copy())
