"""The train step of a config, lowered for a mesh from shapes alone: no data, no arrays, no run."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.parallel import sharding
from convmixer_jax.training.build import make_model, make_step

_STEPS_PER_EPOCH = 2001  # of ImageNet at a batch of 640; it is a constant of the program, no more


def lower_train_step(
  config: config_dict.ConfigDict, mesh: Mesh, model=None
) -> tuple[jax.stages.Lowered, TrainState]:
  """The step that `Experiment` would run, and the shapes of its state.

  Args:
    config: of the model, the batch and the optimiser.
    mesh: where.
    model: instead of the config's.
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
