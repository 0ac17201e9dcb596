"""The config.json of a run."""

import json
import pathlib
from typing import Any

from ml_collections import config_dict

from convmixer_jax import storage
from convmixer_jax.config.keys import KEYS, base, flatten
from convmixer_jax.errors import UserError

# Sections that may change when a run resumes: its length, logging, checkpointing, data workers and
# devices. Every other section determines the result.
FREE_SECTIONS = ("run", "parallel")

# Old locations of keys in the config.json of earlier runs, and their new ones.
_RENAMED = {("optimizer", name): ("step", name) for name in KEYS["step"]}
_RENAMED["run", "max_damaged"] = ("run", "max_corrupt")
# Old values of keys, and their new ones.
_OLD_VALUES: dict[tuple[str, str], dict[Any, Any]] = {
  ("parallel", "remat"): {False: "none", True: "blocks"}
}


def check_resumable(config: config_dict.ConfigDict, path: pathlib.Path) -> None:
  """Checks the config against the one that the run started with, if `path` exists.

  The sections `run` and `parallel` may differ.

  Raises:
    UserError: names each key that differs, with both values.
  """
  if not path.exists():
    return
  before, now = flatten(json.loads(to_json(read_json(path)))), flatten(json.loads(to_json(config)))
  differing = [
    f"config.{key} was {before[key]!r} and is {now[key]!r}"
    for key in now
    if key.partition(".")[0] not in FREE_SECTIONS and before[key] != now[key]
  ]
  if differing:
    raise UserError(
      f"{path} is the config of another run: {'; '.join(differing)}. Use the settings that it "
      f"started with, or a new --workdir. Only config.run.* and config.parallel.* may change"
    )


def write_json(config: config_dict.ConfigDict, path: pathlib.Path) -> None:
  """Writes the resolved config atomically; creates the directory if needed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  storage.write_whole(path, to_json(config))


def to_json(config: config_dict.ConfigDict) -> str:
  """The resolved config as an indented JSON object with the sections of `base`."""
  return config.to_json_best_effort(indent=2) + "\n"


def read_json(path: pathlib.Path) -> config_dict.ConfigDict:
  """Reads a config that `write_json` wrote.

  Raises:
    UserError: if the file is missing or not such a config.
  """
  config = base()
  try:
    fields = json.loads(path.read_text())
    for (old_section, old), (section, name) in _RENAMED.items():
      if old in fields.get(old_section, {}):
        fields.setdefault(section, {})[name] = fields[old_section].pop(old)
    for (section, name), new in _OLD_VALUES.items():
      if name in fields.get(section, {}):
        value = fields[section][name]
        fields[section][name] = new.get(value, value)
    config.update(fields)
  except FileNotFoundError:
    raise UserError(f"{path} does not exist: --workdir must be the directory of a run") from None
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} is not the config of a run: {error}") from None
  if flatten(config).keys() != flatten(base()).keys():
    raise UserError(f"{path} is not the config of a run: a section is missing")
  return config
