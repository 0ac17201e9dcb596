"""The names of a model's classes."""

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
  """The English names of ImageNet-1k's classes by WordNet id, in label order.

  Each is the first lemma of the synset in WordNet 3.0. Where two classes share it,
  an addition distinguishes them.
  """
  file = importlib.resources.files("convmixer_jax.data") / "imagenet_classes.txt"
  return dict(line.split("\t") for line in file.read_text().splitlines())


def readable(names: Sequence[str]) -> list[str]:
  """Replaces the WordNet ids of ImageNet-1k by English names; keeps all other names."""
  return [imagenet().get(name, name) for name in names]


def numbered(num_classes: int) -> list[str]:
  """Placeholder names: "class 0", "class 1", ..."""
  return [f"class {number}" for number in range(num_classes)]


def write(workdir: pathlib.Path, names: Sequence[str]) -> None:
  """Writes the readable names into the workdir of a run, atomically."""
  storage.write_whole(workdir / _FILE, json.dumps(readable(names), indent=0) + "\n")


def read(workdir: pathlib.Path) -> tuple[str, ...] | None:
  """The names that `write` stored in a workdir; None if there are none.

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
      f"{path} is corrupt: {error}. Remove it: re-running the training command writes it again"
    ) from None
