"""The flags --config and --config.KEY, for the commands that take them."""

from collections.abc import Sequence
import contextlib
import re

from absl import flags
from ml_collections import config_dict

from convmixer_jax.config import files, keys
from convmixer_jax.config import overrides as overrides_lib


def define_flags(argv: Sequence[str]) -> None:
  """Defines --config, and a flag for each --config.KEY in `argv`."""
  flags.disclaim_key_flags()  # the flags belong to the calling command, whose --help shows them
  flags.DEFINE_string(
    "config",
    "digits",
    f"Config file, or the name of a config: {', '.join(files.names())}. "
    "--config.section.key=value overrides a setting.",
  )
  with contextlib.suppress(flags.Error):  # from a --flagfile; absl reports it when it parses
    argv = flags.FLAGS.read_flags_from_files(argv)
  types = keys.types(keys.base())
  for argument in argv:
    found = re.match(r"--?(?:no)?(config\.[^=]+)", argument)
    if found and found[1] not in flags.FLAGS:
      flags.DEFINE_string(found[1], None, "Overrides this setting.")
      # As in absl: --config.KEY means true, and --noconfig.KEY false.
      flags.FLAGS[found[1]].boolean = types.get(found[1].partition(".")[2]) is bool


def overrides() -> dict[str, str]:
  """The settings given on the command line, as {"section.key": text}."""
  given = [name for name in flags.FLAGS if name.startswith("config.") and flags.FLAGS[name].present]
  return {name.partition(".")[2]: str(flags.FLAGS[name].value) for name in given}


def override(config: config_dict.ConfigDict) -> None:
  """Sets them.

  Raises:
    UserError: if a setting is invalid.
  """
  for key, text in overrides().items():
    overrides_lib.override(config, key, text)


def read_config() -> config_dict.ConfigDict:
  """The config given by the flags.

  Raises:
    UserError: if a file or a setting is missing or invalid.
  """
  config = files.read(files.path_of(flags.FLAGS.config))
  override(config)
  return config
