"""What the classes of a model are called."""

from collections.abc import Sequence
import functools
import importlib.resources
import json
import pathlib

from convmixer_jax import storage
from convmixer_jax.errors import UserError

_FILE = "class_names.json"


@functools.cache
def imagenet() -> dict[str, str]:
  """English names of ImageNet-1k's classes by WordNet id, in the order of the labels.

  Each is the first word of the class's synset in WordNet 3.0; where two classes
  share it, something is added that tells them apart.
  """
  file = importlib.resources.files("convmixer_jax.data") / "imagenet_classes.txt"
  return dict(line.split("\t") for line in file.read_text().splitlines())


def readable(names: Sequence[str]) -> list[str]:
  """The names, but for WordNet ids of ImageNet-1k's classes what they stand for."""
  return [imagenet().get(name, name) for name in names]


def numbered(num_classes: int) -> list[str]:
  """Names for classes of which nothing is known."""
  return [f"class {number}" for number in range(num_classes)]


def write(workdir: pathlib.Path, names: Sequence[str]) -> None:
  """Writes the readable names into the workdir of a run, in one piece."""
  storage.write_whole(workdir / _FILE, json.dumps(readable(names), indent=0) + "\n")


def read(workdir: pathlib.Path) -> tuple[str, ...] | None:
  """What `write` wrote; None if it did not.

  Raises:
    UserError: if the file is corrupt.
  """
  path = workdir / _FILE
  if not path.is_file():
    return None
  try:
    return tuple(map(str, json.loads(path.read_text())))
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{path} is corrupt: {error}. Remove it: the run's command writes it again"
    ) from None
