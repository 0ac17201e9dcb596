"""From a config to the batches of one split on the mesh, with every check of the data."""

import dataclasses
import logging
import math
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import class_names, data
from convmixer_jax import config as config_lib
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.augment import Augmentation, policy
from convmixer_jax.damage import Damage
from convmixer_jax.errors import UserError
from convmixer_jax.preprocess import Preprocess
from convmixer_jax.source import open_source
from convmixer_jax.trained import Preprocessing

_log = logging.getLogger(__name__)

# By the number of channels: ImageNet's, and what its grey images have.
_NORMALISATION = {
  1: "'--config.augment.mean=(0.449,)' '--config.augment.std=(0.226,)'",
  3: "--config.augment.mean=0.485,0.456,0.406 --config.augment.std=0.229,0.224,0.225",
}


def resolve(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """The config with what it leaves to the data: `model.num_classes`, where that is None.

  Raises:
    UserError: if the data are missing.
  """
  if config.model.num_classes is not None:
    return config
  c = config.data
  names = open_source(c.dataset, c.eval_split, c.data_dir).class_names
  if len(names) == 1:
    raise UserError(
      f"{c.dataset} has images of one class, {names[0]}: classification takes two or more. "
      f"config.data.data_dir={c.data_dir} has to have a directory for each class"
    )
  resolved = config.copy_and_resolve_references()
  resolved.model.num_classes = len(names)
  return resolved


def open_split(
  config: config_dict.ConfigDict, mesh: Mesh, split: str, *, train: bool
) -> tuple[data.Batches, mesh_lib.Feed]:
  """The batches of a split, and what puts them on the mesh.

  Args:
    config: see `config.base`.
    mesh: where.
    split: in TFDS's syntax.
    train: for training, or for evaluation.

  Raises:
    UserError: if the data are missing, or do not fit the rest of the config.
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
      f"config.augment.mean={config.augment.mean} and config.augment.std={config.augment.std} are "
      f"of {len(config.augment.mean)} channels, but {c.dataset} has {source.channels}: set "
      f"{_NORMALISATION[source.channels]}"
    )
  batches = data.Batches(
    source,
    Preprocess(
      c.image_size,
      _crop_on_host(config),
      c.crop_scale,
      c.crop_ratio,
      c.crop_interpolation,
      c.eval_crop_fraction,
    ),
    c.batch_size if train else c.eval_batch_size,
    train,
    config.seed,
    c.drop_remainder,
    jax.process_index(),
    jax.process_count(),
    damage=Damage(config.run.max_damaged),
  )
  if train:
    _check_sizes(batches, mesh, "batch_size", config_lib.batch_unit(config))
    _check_rest(config, len(source) % c.batch_size)
  else:
    _check_sizes(batches, mesh, "eval_batch_size", 1)
  damaged: dict[int, str] = {}
  # An error before all the others decode.
  data.read(source, batches.preprocess, [0], [None], damaged)
  batches.damage.note(damaged)
  if c.cache == "none":
    return batches, mesh_lib.Feed(mesh)
  _log.info("decoding %d images of %s into memory", len(source), c.dataset)
  resident = data.in_memory(source, batches.preprocess, damaged)
  batches.damage.note(damaged)
  on_device = c.cache == "device" and mesh_lib.fits(mesh, resident)
  batches = dataclasses.replace(batches, source=resident, index_only=on_device)
  return batches, mesh_lib.Feed(mesh, resident if on_device else None)


def preprocessing_of(config: config_dict.ConfigDict, workdir: pathlib.Path) -> Preprocessing:
  """How the evaluation of a run preprocesses images, and what the classes of its data are called.

  Args:
    config: the run's, see `config.base`.
    workdir: has the names; of a run that did not write them they are those of the data, or
      unknown, with a warning, if these are not on this machine.

  Raises:
    UserError: if the names are there but damaged.
  """
  c, names = config.data, class_names.read(workdir)
  if names is None and c.dataset == "imagenet2012":
    names = tuple(class_names.imagenet().values())
  elif names is None:
    try:
      source = open_source(c.dataset, c.eval_split, c.data_dir)
      names = tuple(class_names.readable(source.class_names))
    except UserError as error:
      _log.warning("the names of the classes are not known, because data are missing: %s", error)
  # Without a crop all images of the run have one size; others are resized as a whole.
  fraction = c.eval_crop_fraction if _crop_on_host(config) == "random_resized" else 1.0
  mean, std = tuple(config.augment.mean), tuple(config.augment.std)
  return Preprocessing(c.image_size, mean, std, fraction, names)


def make_augmentation(config: config_dict.ConfigDict, mesh: Mesh) -> Augmentation:
  """What `config.augment` says, and the crop if it is made on the device."""
  c, settings = config.data, config.augment.to_dict()
  text = settings.pop("policy")
  on_device = c.crop == "random_resized" and _crop_on_host(config) == "none"
  return Augmentation(
    **settings,
    resized_crop=(c.crop_scale, c.crop_ratio, c.crop_interpolation) if on_device else None,
    policy=None if text is None else policy.parse(text),
    num_classes=config.model.num_classes,
    group_size=c.group_size,
    draws_on=mesh_lib.replicated(mesh) if mesh.size > 1 else None,
  )


def _crop_on_host(config: config_dict.ConfigDict) -> str:
  """Images of many sizes cannot be cached, and images of one size are cropped on the device."""
  return config.data.crop if config.data.cache == "none" else "none"


def _check_rest(config: config_dict.ConfigDict, rest: int) -> None:
  unit = config_lib.batch_unit(config)
  if rest % unit and not config.data.drop_remainder:
    raise UserError(
      f"config.data.batch_size is {config.data.batch_size}, which leaves a last batch of {rest}; "
      f"accumulate_steps, group_size and the pairs of Mixup take a multiple of {unit}: set "
      "--config.data.drop_remainder=True"
    )


def _check_sizes(batches: data.Batches, mesh: Mesh, key: str, unit: int) -> None:
  """Batches of whole units, on each device as many images, and in training not too large."""
  size, devices, examples = batches.batch_size, mesh.size, len(batches.source)
  step = math.lcm(devices, unit)
  if size % devices:
    raise UserError(
      f"config.data.{key} is {size}, which {devices} devices cannot share: set a multiple of {step}"
      f", such as --config.data.{key}={max(size // step, 1) * step}"
    )
  if not batches.train:
    return
  if size > examples and batches.drop_remainder:
    raise UserError(
      f"config.data.{key} is {size}, but there are only {examples} training examples: "
      + (
        f"set at most --config.data.{key}={examples // step * step}"
        if examples >= step
        else f"{devices} devices and the other settings of batches take at least {step}"
      )
    )
  rest = examples % size
  if rest % devices and not batches.drop_remainder:
    raise UserError(
      f"config.data.{key} is {size}, which leaves a last batch of {rest} that {devices} devices "
      "cannot share: set --config.data.drop_remainder=True"
    )
