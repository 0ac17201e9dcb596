"""The train step of a config, lowered for a mesh from shapes alone: no data, no arrays, no run."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import mesh as mesh_lib
from convmixer_jax.inputs import make_augmentation
from convmixer_jax.optim import make_optimizer, make_schedule
from convmixer_jax.state import TrainState, create_state, make_model
from convmixer_jax.step import train_step

_STEPS_PER_EPOCH = 2001  # of ImageNet at a batch of 640; it is a constant of the program, no more


def lower_train_step(
  config: config_dict.ConfigDict, mesh: Mesh, model=None
) -> tuple[jax.stages.Lowered, TrainState]:
  """The step that `train.Experiment` would run, and the shapes of its state.

  Args:
    config: of the model, the batch and the optimiser.
    mesh: where.
    model: instead of the config's.
  """
  model = model or make_model(config, mesh)
  settings = config.optimizer.to_dict()
  schedule = make_schedule(
    **config.schedule,
    peak=settings.pop("learning_rate"),
    epochs=config.run.epochs,
    steps_per_epoch=_STEPS_PER_EPOCH,
  )
  of_step = {name: settings.pop(name) for name in ("loss", "accumulate_steps", "ema_decay")}
  of_step["freeze_backbone"] = settings["freeze_backbone"]
  optimizer = make_optimizer(schedule, **settings)
  size, batch_size = config.data.image_size, config.data.batch_size
  state = jax.eval_shape(
    lambda: create_state(
      model,
      optimizer,
      mesh,
      seed=config.seed,
      image_shape=(size, size, len(config.augment.mean)),
      with_ema=config.optimizer.ema_decay is not None,
    )
  )
  places = mesh_lib.cut(mesh, state)
  state = jax.tree.map(lambda x, place: x.update(sharding=place), state, places)
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=mesh_lib.sharded(mesh))
  batch = {
    "image": shape((batch_size, size, size, len(config.augment.mean)), jnp.uint8),
    "label": shape((batch_size,), jnp.int32),
    "mask": shape((batch_size,), jnp.float32),
  }
  step = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    schedule=schedule,
    augmentation=make_augmentation(config, mesh),
    mesh=mesh if mesh.size > 1 else None,
    **of_step,
  )
  out = places, mesh_lib.replicated(mesh)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
  return jitted.lower(state, batch), state
