"""From a config to the batches of one split on the mesh, with every check of the data."""

import dataclasses
import logging
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import class_names, data
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.augment import Augmentation, policy
from convmixer_jax.damage import Damage
from convmixer_jax.errors import UserError
from convmixer_jax.preprocess import Preprocess
from convmixer_jax.source import open_source
from convmixer_jax.trained import Preprocessing

_log = logging.getLogger(__name__)


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
      f"of {len(config.augment.mean)} channels, but {c.dataset} has {source.channels}"
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
  _check_sizes(batches, mesh, "batch_size" if train else "eval_batch_size")
  if train:
    _check_rest(config, len(source) % c.batch_size)
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
  unit = config.optimizer.accumulate_steps * (config.data.group_size or 1)
  if rest % unit and not config.data.drop_remainder:
    raise UserError(
      f"config.data.batch_size is {config.data.batch_size}, which leaves a last batch of {rest} "
      f"that is no multiple of config.data.group_size * config.optimizer.accumulate_steps = {unit}:"
      " set config.data.drop_remainder=True"
    )


def _check_sizes(batches: data.Batches, mesh: Mesh, key: str) -> None:
  size, devices, examples = batches.batch_size, mesh.size, len(batches.source)
  if size % devices:
    raise UserError(
      f"config.data.{key} is {size}, which {devices} devices cannot share: set it to a multiple "
      f"of {devices}"
    )
  if not batches.train:
    return
  if size > examples and batches.drop_remainder:
    raise UserError(
      f"config.data.{key} is {size}, but there are only {examples} training examples: set at most "
      f"{examples // devices * devices}"
    )
  rest = examples % size
  if rest % devices and not batches.drop_remainder:
    raise UserError(
      f"config.data.{key} is {size}, which leaves a last batch of {rest} that {devices} devices "
      "cannot share: set config.data.drop_remainder=True or another batch size"
    )
