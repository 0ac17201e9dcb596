"""The weights that a run begins with, or that are evaluated: those of `config.init_from`."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from convmixer_jax import mesh as mesh_lib
from convmixer_jax import pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.state import TrainState

_log = logging.getLogger(__name__)

Variables = dict[str, Any]

# What has to be the same for the weights to mean the same. The activation of a file of PyTorch's is
# the config's, for weights do not tell it.
_ATTRIBUTES = ("dim", "depth", "kernel_size", "patch_size", "activation", "norm_epsilon")


def read(config: config_dict.ConfigDict, with_head: bool = False) -> Variables:
  """The model's variables from the file, the model's name or the workdir `config.init_from`.

  Args:
    config: see `config.base`; its model has to be that of the weights.
    with_head: refuse weights for another number of classes. Otherwise they come
      without their head.

  Raises:
    UserError: if they cannot be read, or naming each setting that they do not fit.
  """
  source = config.init_from
  model, variables = pretrained.load(source, activation=config.model.activation)
  found = {
    f"config.model.{name}": (config.model[name], getattr(model, name)) for name in _ATTRIBUTES
  }
  channels = variables["params"]["stem"]["kernel"].shape[2]
  found["the number of channels in config.augment.mean"] = (len(config.augment.mean), channels)
  if with_head:
    found["config.model.num_classes"] = (config.model.num_classes, model.num_classes)
  wrong = [f"{name} is {ours}, not {theirs}" for name, (ours, theirs) in found.items()
           if ours != theirs]  # fmt: skip
  if wrong:
    raise UserError(f"config.init_from={source} does not fit the config: {'; '.join(wrong)}")
  if model.num_classes == config.model.num_classes:
    _log.info("all weights, the head's too, come from %s", source)
    return variables
  _log.info(
    "the weights come from %s, but for a new head of %d classes: it has %d",
    source,
    config.model.num_classes,
    model.num_classes,
  )
  backbone = {name: x for name, x in variables["params"].items() if name != "head"}
  return {**variables, "params": backbone}


def begin(state: TrainState, weights: Variables) -> TrainState:
  """A fresh `state` with these weights; a head that is not among them stays as it is."""

  def placed(values: Variables, likes: Variables) -> Variables:
    likes = {name: likes[name] for name in values}
    return jax.tree.map(
      lambda x, like: mesh_lib.place(np.asarray(x, like.dtype), like.sharding), values, likes
    )

  def copy() -> Variables:  # the step is given the state's memory, so none is used twice
    params = jax.tree.map(jnp.copy, state.params)
    return {
      "params": {**params, **placed(weights["params"], state.params)},
      "batch_stats": placed(weights["batch_stats"], state.batch_stats),
    }

  return state.replace(**copy(), ema=None if state.ema is None else copy())
