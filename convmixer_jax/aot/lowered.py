"""Lowers the steps of a run for a mesh from shapes only, without data or arrays."""

import contextlib
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.model.variables import shapes
from convmixer_jax.parallel import sharding
from convmixer_jax.training.build import make_model, make_normalize, make_step
from convmixer_jax.training.evaluator import eval_step, jitted

STEPS_PER_EPOCH = 2001  # ImageNet at a batch of 640; only a constant in the program


def lower_train_step(
  config: config_dict.ConfigDict,
  mesh: Mesh,
  model: ConvMixer | None = None,
  steps_per_epoch: int = STEPS_PER_EPOCH,
) -> tuple[jax.stages.Lowered, TrainState]:
  """The lowered step that `Experiment` would run, and the shapes of its state.

  Args:
    config: config of the model, the batch and the optimizer.
    mesh: devices to shard over.
    model: replaces the config's model.
    steps_per_epoch: for the schedule.
  """
  model = model or make_model(config, mesh)
  channels = len(config.augment.mean)
  _, step, fresh_state = make_step(config, mesh, model, steps_per_epoch, channels)
  state = jax.eval_shape(fresh_state)
  state = jax.tree.map(
    lambda x, place: x.update(sharding=place), state, sharding.state_sharding(mesh, state)
  )
  with _as_context(mesh):
    return step.lower(state, _batch(config, mesh, config.data.batch_size)), state


def lower_eval_step(config: config_dict.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
  """The lowered step of an evaluation."""
  model = make_model(config, mesh)
  variables = shapes(model, len(config.augment.mean), sharding.replicated(mesh))
  step = jitted(eval_step, model, make_normalize(config))
  with _as_context(mesh):
    return step.lower(variables, _batch(config, mesh, config.data.eval_batch_size))


def _batch(
  config: config_dict.ConfigDict, mesh: Mesh, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of what `ShardBatch` returns."""
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(mesh))
  size, channels = config.data.image_size, len(config.augment.mean)
  return {
    "image": shape((batch_size, size, size, channels), jnp.uint8),
    "label": shape((batch_size,), jnp.int32),
    "mask": shape((batch_size,), jnp.float32),
  }


def _as_context(mesh: Mesh) -> contextlib.AbstractContextManager:
  """Tells Pallas the kind of GPU, which it otherwise asks of this machine's devices."""
  if mesh.devices.flat[0].platform in ("cuda", "gpu"):
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
  return contextlib.nullcontext()
