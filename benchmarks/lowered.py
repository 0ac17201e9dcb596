"""Lowers a config's train step for a mesh from shapes only, without data or arrays."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.parallel import sharding
from convmixer_jax.training.build import make_model, make_step

_STEPS_PER_EPOCH = 2001  # ImageNet at a batch of 640; only a constant in the program


def lower_train_step(
  config: config_dict.ConfigDict, mesh: Mesh, model=None
) -> tuple[jax.stages.Lowered, TrainState]:
  """The lowered step that `Experiment` would run, and the shapes of its state.

  Args:
    config: config of the model, the batch and the optimizer.
    mesh: devices to shard over.
    model: replaces the config's model.
  """
  model = model or make_model(config, mesh)
  channels = len(config.augment.mean)
  _, step, fresh_state = make_step(config, mesh, model, _STEPS_PER_EPOCH, channels)
  state = jax.eval_shape(fresh_state)
  state = jax.tree.map(
    lambda x, place: x.update(sharding=place), state, sharding.state_sharding(mesh, state)
  )
  size, batch_size = config.data.image_size, config.data.batch_size
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(mesh))
  batch = {
    "image": shape((batch_size, size, size, channels), jnp.uint8),
    "label": shape((batch_size,), jnp.int32),
    "mask": shape((batch_size,), jnp.float32),
  }
  return step.lower(state, batch), state
