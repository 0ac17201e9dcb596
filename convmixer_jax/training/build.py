"""Builds the parts of a run from a config: data, augmentation, model, training step, evaluation.

Only this module passes sections of a config to the parts.
"""

from collections.abc import Callable
import copy
import dataclasses
import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict
import optax

from convmixer_jax import augment
from convmixer_jax import config as config_lib
from convmixer_jax.augment import Augmentation, policy
from convmixer_jax.checkpoint.state import TrainState, create_state
from convmixer_jax.data.batches import Batches
from convmixer_jax.data.corrupt import CorruptExamples
from convmixer_jax.data.datasets import open_source
from convmixer_jax.data.preprocess import Preprocess
from convmixer_jax.data.shard_batch import ShardBatch, cached
from convmixer_jax.depthwise import by_platform
from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.optim import optimizer as optim
from convmixer_jax.optim import schedules
from convmixer_jax.parallel import sharding
from convmixer_jax.training.evaluator import Evaluator
from convmixer_jax.training.step import train_step

_log = logging.getLogger(__name__)

# By number of channels: ImageNet's values, and those of ImageNet in greyscale.
_NORMALISATION = {
  1: "'--config.augment.mean=(0.449,)' '--config.augment.std=(0.226,)'",
  3: "--config.augment.mean=0.485,0.456,0.406 --config.augment.std=0.229,0.224,0.225",
}


def resolve(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Validates the config, and takes `model.num_classes` from the data if it is None.

  Raises:
    UserError: if a setting is invalid, or the data are missing.
  """
  config_lib.validate(config)
  if config.model.num_classes is not None:
    return config
  c = config.data
  names = open_source(c.dataset, c.eval_split, c.data_dir).class_names
  if len(names) == 1:
    raise UserError(
      f"{c.dataset} has images of one class, {names[0]}: classification takes two or more. "
      f"config.data.data_dir={c.data_dir} must have one directory per class"
    )
  resolved = config.copy_and_resolve_references()
  resolved.model.num_classes = len(names)
  return resolved


def open_split(
  config: config_dict.ConfigDict, mesh: Mesh, split: str, *, train: bool
) -> tuple[Batches, ShardBatch]:
  """The batches of a split, and the `ShardBatch` that places them on the mesh.

  Args:
    config: see `config.base`.
    mesh: devices to shard over.
    split: in TFDS syntax.
    train: whether the batches are for training or for evaluation.

  Raises:
    UserError: if the data are missing, or do not match the rest of the config.
  """
  c = config.data
  source = open_source(c.dataset, split, c.data_dir)
  if len(source.class_names) != config.model.num_classes:
    raise UserError(
      f"config.model.num_classes is {config.model.num_classes}, but {c.dataset} has "
      f"{len(source.class_names)} classes: set --config.model.num_classes={len(source.class_names)}"
    )
  if source.channels != len(config.augment.mean):
    raise UserError(
      f"config.augment.mean={config.augment.mean} and config.augment.std={config.augment.std} have "
      f"{len(config.augment.mean)} channels, but {c.dataset} has {source.channels}: set "
      f"{_NORMALISATION[source.channels]}"
    )
  preprocess = Preprocess(
    image_size=c.image_size,
    crop=_crop_on_host(config),
    scale=c.crop_scale,
    ratio=c.crop_ratio,
    interpolation=c.crop_interpolation,
    eval_fraction=c.eval_crop_fraction,
  )
  batches = Batches(
    source=source,
    preprocess=preprocess,
    batch_size=c.batch_size if train else c.eval_batch_size,
    train=train,
    seed=config.seed,
    drop_remainder=c.drop_remainder,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    corrupt_examples=CorruptExamples(config.run.max_corrupt),
  )
  if train:
    _check_sizes(batches, mesh, "batch_size", config_lib.batch_unit(config))
    _check_rest(config, len(source) % c.batch_size)
  else:
    _check_sizes(batches, mesh, "eval_batch_size", 1)
  return cached(batches, mesh, c.cache)


def make_augmentation(config: config_dict.ConfigDict, mesh: Mesh) -> Augmentation:
  """The augmentation of `config.augment`, including the random crop if it runs on the device."""
  c, text = config.data, config.augment.policy
  on_device = c.crop == "random_resized" and _crop_on_host(config) == "none"
  return Augmentation(
    **{**config.augment, "policy": None if text is None else policy.parse(text)},
    resized_crop=(c.crop_scale, c.crop_ratio, c.crop_interpolation) if on_device else None,
    num_classes=config.model.num_classes,
    group_size=c.group_size,
    mesh=mesh,
  )


def _crop_on_host(config: config_dict.ConfigDict) -> str:
  """The crop that the host makes: none with a cache, whose images are cropped on the device."""
  return config.data.crop if config.data.cache == "none" else "none"


def _check_rest(config: config_dict.ConfigDict, rest: int) -> None:
  unit = config_lib.batch_unit(config)
  if rest % unit and not config.data.drop_remainder:
    raise UserError(
      f"config.data.batch_size is {config.data.batch_size}, which leaves a last batch of {rest}; "
      f"accumulate_steps, group_size and the pairs of Mixup need a multiple of {unit}: set "
      "--config.data.drop_remainder=True"
    )


def check_shared(key: str, size: int, devices: int, unit: int) -> None:
  """Checks that a batch divides over the devices.

  Args:
    key: of the batch's size in `config.data`.
    size: images in a batch.
    devices: how many share it.
    unit: what must divide the size besides.

  Raises:
    UserError: says which size would do.
  """
  step = math.lcm(devices, unit)
  if size % devices:
    raise UserError(
      f"config.data.{key} is {size}, which {devices} devices cannot share: set a multiple of {step}"
      f", such as --config.data.{key}={max(size // step, 1) * step}"
    )


def _check_sizes(batches: Batches, mesh: Mesh, key: str, unit: int) -> None:
  """Checks that batches divide over devices and units, and that a training batch is not too big."""
  size, devices, examples = batches.batch_size, mesh.size, len(batches.source)
  check_shared(key, size, devices, unit)
  if not batches.train:
    return
  step = math.lcm(devices, unit)
  if size > examples and batches.drop_remainder:
    raise UserError(
      f"config.data.{key} is {size}, but there are only {examples} training examples: "
      + (
        f"set at most --config.data.{key}={examples // step * step}"
        if examples >= step
        else f"{devices} devices and the other batch settings need at least {step}"
      )
    )
  rest = examples % size
  if rest % devices and not batches.drop_remainder:
    raise UserError(
      f"config.data.{key} is {size}, which leaves a last batch of {rest} that {devices} devices "
      "cannot share: set --config.data.drop_remainder=True"
    )


def make_model(config: config_dict.ConfigDict, mesh: Mesh) -> ConvMixer:
  """The ConvMixer of `config.model`, for batches sharded over the mesh.

  Raises:
    UserError: if `config.model.depthwise` is "native" but the devices are not CPUs.
  """
  platform, depthwise = mesh.devices.flat[0].platform, config.model.depthwise
  if depthwise is None and platform == "cpu":
    depthwise = by_platform.default_on_cpu()
  if depthwise == "native" and platform != "cpu":
    raise UserError(
      f'config.model.depthwise is "native", which is for CPUs, and this machine computes on '
      f"{platform}: leave it unset"
    )
  return ConvMixer(
    **{**config.model, "depthwise": depthwise, "dtype": jnp.dtype(config.model.dtype)},
    group_size=config.data.group_size,
    remat=config.parallel.remat,
    scan=config.parallel.scan,
    mesh=mesh,
  )


def make_schedule(config: config_dict.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  """The learning rate schedule of `config.schedule`, as a function of the step."""
  return schedules.make_schedule(
    **config.schedule,
    peak=config.optimizer.learning_rate,
    epochs=config.run.epochs,
    steps_per_epoch=steps_per_epoch,
  )


def make_step(
  config: config_dict.ConfigDict,
  mesh: Mesh,
  model: ConvMixer,
  steps_per_epoch: int,
  channels: int,
) -> tuple[optax.GradientTransformation, Any, Callable[[], TrainState]]:
  """The optimiser, the jitted `step.train_step`, and a function that creates the initial state.

  Args:
    config: see `config.base`.
    mesh: devices to shard over.
    model: the model to train.
    steps_per_epoch: for the schedule.
    channels: number of channels of the images.
  """
  schedule = make_schedule(config, steps_per_epoch)
  optimizer = optim.make_optimizer(**{**config.optimizer, "learning_rate": schedule})
  if config.step.freeze_backbone:
    optimizer = optim.of_head(optimizer)
  size = config.data.image_size

  def fresh_state() -> TrainState:
    return create_state(
      model,
      optimizer,
      mesh,
      seed=config.seed,
      image_shape=(size, size, channels),
      with_ema=config.step.ema_decay is not None,
    )

  state = jax.eval_shape(fresh_state)
  _log.info(sharding.describe(mesh, state.params))
  step = jax.jit(
    functools.partial(
      train_step,
      **config.step,
      model=model,
      optimizer=optimizer,
      schedule=schedule,
      augmentation=make_augmentation(config, mesh),
    ),
    donate_argnums=0,
    out_shardings=(sharding.state_sharding(mesh, state), sharding.replicated(mesh)),
  )
  return optimizer, step, fresh_state


def make_normalize(config: config_dict.ConfigDict) -> Callable[[jax.Array], jax.Array]:
  """Turns uint8 images into the model's input, for evaluation."""
  return functools.partial(augment.normalize, mean=config.augment.mean, std=config.augment.std)


def make_evaluator(
  config: config_dict.ConfigDict, mesh: Mesh, split: str, model: ConvMixer | None = None
) -> Evaluator:
  """The evaluator of a split, for `model` or by default for the config's model.

  Raises:
    UserError: if the data are missing, or do not match the rest of the config.
  """
  model = make_model(config, mesh) if model is None else model
  return _evaluator(config, model, *open_split(config, mesh, split, train=False), split)


def make_train_evaluator(
  config: config_dict.ConfigDict, model: ConvMixer, batches: Batches, shard_batch: ShardBatch
) -> Evaluator:
  """The evaluator of the training split, which shares the cached images of `batches`."""
  batches = dataclasses.replace(
    batches,
    train=False,
    batch_size=config.data.eval_batch_size,
    corrupt_examples=copy.copy(batches.corrupt_examples),  # counted separately from training's
  )
  return _evaluator(config, model, batches, shard_batch, config.data.train_split)


def _evaluator(
  config: config_dict.ConfigDict,
  model: ConvMixer,
  batches: Batches,
  shard_batch: ShardBatch,
  split: str,
) -> Evaluator:
  normalize, workers = make_normalize(config), config.run.workers
  return Evaluator(model, batches, shard_batch, normalize=normalize, workers=workers, name=split)
