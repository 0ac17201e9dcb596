"""The command `python -m convmixer_jax.main`: trains, or evaluates a checkpoint.

With --mode=eval, --config.init_from=WEIGHTS on the command line evaluates these instead.
"""

from collections.abc import Sequence
import json
import pathlib
import sys

from absl import app, flags
from ml_collections import config_dict, config_flags

from convmixer_jax import command, storage
from convmixer_jax import config as config_lib
from convmixer_jax.errors import UserError

_DEFAULT_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"


def define_flags() -> None:
  """Defines the command's flags; importing this module defines none."""
  flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a checkpoint.")
  flags.DEFINE_string(
    "workdir",
    None,
    "The run's directory, new or to be resumed; also gs://BUCKET/...; default runs/NAME_OF_CONFIG.",
  )
  flags.DEFINE_integer("step", None, "For --mode=eval, the checkpoint's step; default the newest.")
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where no cluster tells it to several processes."
  )
  flags.DEFINE_integer("num_processes", None, "With --coordinator, how many there are.")
  flags.DEFINE_integer("process_id", None, "With --coordinator, which one this is, from 0.")
  config_flags.DEFINE_config_file(
    "config", str(_DEFAULT_CONFIG), "File of settings; --config.section.key=value overrides one."
  )


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Defines and parses the flags, with one line for a mistake in the settings.

  Raises:
    UserError: for an unknown setting or an unreadable config file.
  """
  try:
    define_flags()  # already looks at the settings in `sys.argv`
    return app.parse_flags_with_usage(list(argv))
  except (AttributeError, KeyError, TypeError) as error:  # ml_collections' own
    # Their message is the quotation of a quotation.
    message = str(error.args[0]).replace("\\'", "'").replace("\\n", ". ").replace("\n", ". ")
    message = message.split(" Other fields")[0].rstrip(".")
    raise UserError(
      f"a setting in {' '.join(argv[1:])} is wrong: {message}. All settings are in "
      "convmixer_jax/config.py"
    ) from None


def read_config(workdir: pathlib.Path) -> config_dict.ConfigDict:
  """The config that the flags ask for; an evaluation without --config takes the run's own.

  Raises:
    UserError: if a file is missing, or an evaluation's settings are not the run's.
  """
  flag = flags.FLAGS["config"]
  if flags.FLAGS.mode == "train" or not flag.using_default_value:
    path = pathlib.Path(config_flags.get_config_filename(flag))
    if not path.is_file():
      raise UserError(f"--config={path} is not a file; the configs are in {_DEFAULT_CONFIG.parent}")
    return flag.value
  config = config_lib.read_json(workdir / "config.json")
  config.update_from_flattened_dict(config_flags.get_override_values(flag))
  return config


def main(argv: Sequence[str]) -> None:
  """Trains or evaluates as the flags say; a signal's save ends with exit code 128 + signal."""
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag: flags begin with --")
  options = flags.FLAGS
  name = pathlib.Path(config_flags.get_config_filename(options["config"])).stem
  workdir = storage.path_of(options.workdir or f"runs/{name}")
  config = read_config(workdir)
  config_lib.validate(config)
  # JAX is imported after the flags are known to be right, and not by data workers.
  from convmixer_jax import distributed

  with distributed.joined(
    options.coordinator,
    options.num_processes,
    options.process_id,
    heartbeat_seconds=config.run.heartbeat_seconds,
  ):
    _dispatch(config, workdir)


def _dispatch(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  import jax

  from convmixer_jax import compiling
  from convmixer_jax.evaluate import evaluate_checkpoint, evaluate_weights
  from convmixer_jax.train import train

  compiling.use_cache()
  options = flags.FLAGS
  if options.mode == "train":
    if signum := train(config, workdir):
      sys.exit(128 + signum)
    return
  if config_flags.get_override_values(options["config"]).get("init_from"):
    if options.step is not None:
      raise UserError("--step names a checkpoint, but --config.init_from is what is evaluated")
    found = evaluate_weights(config)
  else:
    found = evaluate_checkpoint(config, workdir, options.step)
  if jax.process_index() == 0:
    print(json.dumps(found))


def run() -> None:
  """The entry point."""
  command.run(main, parse_flags)


if __name__ == "__main__":
  run()
