"""What the classes of a model are called."""

from collections.abc import Sequence
import functools
import importlib.resources
import logging

from ml_collections import config_dict

from convmixer_jax.errors import UserError
from convmixer_jax.source import open_source

_log = logging.getLogger(__name__)


@functools.cache
def imagenet() -> dict[str, str]:
  """English names of ImageNet-1k's classes by WordNet id, in the order of the labels.

  Each is the first word of the class's synset in WordNet 3.0; where two classes
  share it, something is added that tells them apart.
  """
  text = importlib.resources.files("convmixer_jax").joinpath("imagenet_classes.txt").read_text()
  return dict(line.split("\t") for line in text.splitlines())


def readable(names: Sequence[str]) -> list[str]:
  """The names, but for WordNet ids of ImageNet-1k's classes what they stand for."""
  return [imagenet().get(name, name) for name in names]


def of_run(config: config_dict.ConfigDict) -> list[str]:
  """The names in the data of a run; numbers, with a warning, if these are not on this machine."""
  c = config.data
  if c.dataset == "imagenet2012":
    return list(imagenet().values())
  try:
    return readable(open_source(c.dataset, c.eval_split, c.data_dir).class_names)
  except UserError as error:
    _log.warning("classes have numbers for names, because the run's data are missing: %s", error)
    return numbered(config.model.num_classes)


def of_weights(num_classes: int) -> list[str]:
  """ImageNet-1k's for a thousand classes, which is what released weights have; or numbers."""
  return list(imagenet().values()) if num_classes == 1000 else numbered(num_classes)


def numbered(num_classes: int) -> list[str]:
  """Names for classes of which nothing is known."""
  return [f"class {number}" for number in range(num_classes)]
