"""Config files: the shipped ones by name, and any by its path."""

import difflib
import os
import pathlib
import re
import runpy
import traceback
from typing import Any

from ml_collections import config_dict

from convmixer_jax.config.keys import base, types
from convmixer_jax.config.overrides import nearest
from convmixer_jax.errors import UserError


def names() -> list[str]:
  """The names of the configs in this package, for `--config=NAME`."""
  return sorted(path.stem for path in _shipped().glob("*.py"))


def _shipped() -> pathlib.Path:
  """The directory of the configs: inside an installed package, next to it in a checkout."""
  installed = pathlib.Path(__file__).parents[1] / "configs"
  return installed if installed.is_dir() else installed.parents[1] / "configs"


def path_of(name: str) -> pathlib.Path:
  """Resolves --config: a file at this path, or else the shipped config of this name.

  Raises:
    UserError: if there is neither; lists the names.
  """
  path = pathlib.Path(os.path.expanduser(name))
  if path.is_file():
    return path
  if name.removesuffix(".py") in names():
    return _shipped() / f"{path.stem}.py"
  near = "".join(f" Did you mean {n}?" for n in difflib.get_close_matches(path.stem, names(), 1))
  raise UserError(
    f"--config={name} is neither a file nor the name of a config.{near} The names are "
    f"{', '.join(names())}"
  )


def read(path: pathlib.Path) -> config_dict.ConfigDict:
  """Runs a config file and returns its config. Config files use it to extend one another.

  Raises:
    UserError: with the file and the line, if it does not parse, raises, or returns a config whose
      keys or types differ from `base`.
  """
  try:
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
      raise UserError(f"{path} does not define get_config(), which must return the settings")
    config = get_config()
  except UserError:  # from a file that this one reads
    raise
  except SyntaxError as error:
    where = f"{error.filename or path}, line {error.lineno}"
    raise UserError(f"{where}: SyntaxError: {error.msg}") from None
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    raise UserError(f"{where}: {_reason(error)}") from None
  if mistake := _not_as_in_base(config):
    code = getattr(get_config, "__code__", None)
    where = f"{path}, line {code.co_firstlineno}" if code else str(path)
    raise UserError(
      f"{where}: get_config() returns {mistake}. Start from convmixer_jax.config.base(), which "
      "has all keys with their types"
    )
  return config


def _reason(error: Exception) -> str:
  """An exception in one line."""
  inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
  text = str(inner.args[0] if isinstance(inner, KeyError) and inner.args else inner)
  # The message of ml_collections lists all other keys of the section, but not its name.
  key = re.match(r'Key "(\w+)" does not exist', text) or re.fullmatch(
    r"'(\w+)'(\nDid you mean .*)?", text
  )
  if key and isinstance(error, AttributeError | KeyError):
    return f"the key {key[1]} does not exist; {nearest(key[1])}"
  return f"{type(error).__name__}: {' '.join(text.split())}"


def _not_as_in_base(config: Any) -> str | None:
  """How the keys or types of a recipe's config differ from `base`, or None."""
  if not isinstance(config, config_dict.ConfigDict):
    return f"{type(config).__name__}, not a ConfigDict"
  known, found = types(base()), types(config)
  for key in known:
    if key not in found:
      section = key.partition(".")[0]
      return f"no config.{key if section in config else section}"
  for key, kind in found.items():
    if key not in known:
      return f"config.{key}, which does not exist; {nearest(key)}"
    if kind is not known[key]:
      return f"config.{key} of type {kind.__name__}, which must be {known[key].__name__}"
  return None
