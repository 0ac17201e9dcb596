"""Trained weights from the workdir of a run, which has the config and the checkpoints."""

import logging
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint import manager
from convmixer_jax.data import class_names
from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError
from convmixer_jax.model import variables
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

_log = logging.getLogger(__name__)


def read(workdir: pathlib.Path) -> TrainedModel:
  """Reads the model, and the variables of the latest readable checkpoint.

  Raises:
    UserError: if the config is invalid, or there is no readable checkpoint.
  """
  config = config_lib.read_json(workdir / "config.json")
  config_lib.validate(config)
  m = config.model
  model = ConvMixer(**variables.identity(m), dtype=jnp.dtype(m.dtype))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = variables.shapes(model, len(config.augment.mean), here)
  found, step = manager.restore(workdir, like)
  _log.info("%s: weights after step %d", workdir, step)
  return TrainedModel(model, found, model.activation, preprocessing_of(config, workdir))


def preprocessing_of(config: config_dict.ConfigDict, workdir: pathlib.Path) -> Preprocessing:
  """The preprocessing of a run's evaluation, and the names of its classes.

  Args:
    config: config of the run, see `config.base`.
    workdir: holds the class names. If it does not, they are read from the dataset; without that
      they are unknown, with a warning.

  Raises:
    UserError: if the file of the class names is corrupt.
  """
  c, names = config.data, class_names.read(workdir)
  if names is None and c.dataset == "imagenet2012":
    names = tuple(class_names.imagenet().values())
  elif names is None:
    try:
      source = open_source(c.dataset, c.eval_split, c.data_dir)
      names = tuple(class_names.readable(source.class_names))
    except UserError as error:
      _log.warning("the class names are unknown, because the data are missing: %s", error)
  # Without a crop, all images of the run have one size; images of other sizes are resized whole.
  is_cropped = c.crop == "random_resized" and c.cache == "none"
  fraction = c.eval_crop_fraction if is_cropped else 1.0
  mean, std = tuple(config.augment.mean), tuple(config.augment.std)
  return Preprocessing(c.image_size, mean, std, fraction, names)
