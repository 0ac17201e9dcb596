"""Settings on the command line, `--config.section.key=value`."""

import ast
from collections.abc import Callable
import difflib
from typing import Any

from ml_collections import config_dict

from convmixer_jax.config.keys import base, flatten, types
from convmixer_jax.errors import UserError


def _numbers(text: str) -> tuple[float, ...]:
  value = ast.literal_eval(text)
  value = tuple(value) if isinstance(value, list | tuple) else (value,)
  sum(value)  # raises TypeError unless all are numbers
  return value


_FROM_TEXT: dict[type | None, tuple[Callable[[str], Any], str]] = {
  str: (str, "a string"),
  int: (int, "an integer"),
  float: (float, "a number"),
  bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
  tuple: (_numbers, "numbers such as (0.5,0.25)"),
}


def override(config: config_dict.ConfigDict, key: str, text: str) -> None:
  """Sets config.KEY from its text on the command line; "None" means None.

  Raises:
    UserError: for an unknown key (suggests the nearest one) or a value of another type.
  """
  kind = types(config).get(key)
  if kind not in _FROM_TEXT:
    what = "is a section, not a setting" if key in config else "does not exist"
    raise UserError(f"config.{key} {what}; {nearest(key)}")
  parse, wanted = _FROM_TEXT[kind]
  try:
    value = None if text == "None" else parse(text)
  except (KeyError, SyntaxError, TypeError, ValueError):
    raise UserError(f"config.{key} is {text!r}; it must be {wanted}") from None
  config.update_from_flattened_dict({key: value})


def nearest(key: str) -> str:
  """Suggests a key for an unknown one, and lists the keys of its section."""
  known = list(flatten(base()))
  sections = dict.fromkeys(k.partition(".")[0] for k in known if "." in k)
  section, _, name = (key, "", "") if key in sections else key.rpartition(".")
  if section not in sections:
    section = next(iter(difflib.get_close_matches(section, sections, 1)), "")
  everywhere = {k.rpartition(".")[2]: k for k in known} | {s: s for s in sections}
  here = {k.partition(".")[2]: k for k in known if k.startswith(f"{section}.")}
  exact = [name] if name in everywhere else []
  near = exact or difflib.get_close_matches(name, here or everywhere, 1, 0.65)
  meant = "".join(f"did you mean config.{(everywhere | here)[n]}? " for n in near)
  top = [k for k in known if "." not in k] + list(sections)
  return f"{meant}config{'.' * bool(section)}{section} has: {', '.join(here or top)}"
