"""`convmixer-train`, or `python -m convmixer_jax.main`: trains a model, or evaluates a run.

  convmixer-train --config=digits --workdir=runs/digits --config.run.epochs=5
  convmixer-train --mode=eval --workdir=runs/digits

With --mode=eval, --config.init_from=WEIGHTS evaluates these weights instead of a checkpoint.
"""

from collections.abc import Sequence
import json
import pathlib
import sys

from absl import flags
from ml_collections import config_dict

from convmixer_jax import cli, storage
from convmixer_jax import config as config_lib
from convmixer_jax.config import command_line
from convmixer_jax.errors import UserError, needs
from convmixer_jax.parallel import processes


def define_flags(argv: Sequence[str]) -> None:
  """Defines the command's flags, including one for each --config.KEY in `argv`."""
  flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a checkpoint.")
  flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run, new or to resume; also gs://BUCKET/...; default runs/NAME_OF_CONFIG.",
  )
  flags.DEFINE_integer("step", None, "For --mode=eval: step of the checkpoint; default the latest.")
  flags.DEFINE_bool(
    "per_class", False, "For --mode=eval: also the accuracy for each class; a second pass."
  )
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes without a known launcher."
  )
  flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.")
  flags.DEFINE_integer("process_id", None, "With --coordinator: index of this process, from 0.")
  command_line.define_flags(argv)


def read_config(workdir: pathlib.Path) -> config_dict.ConfigDict:
  """The config given by the flags; an evaluation without --config uses the run's config.json.

  Raises:
    UserError: if a file or a setting is missing or invalid.
  """
  options = flags.FLAGS
  if options.mode == "train" or not options["config"].using_default_value:
    return command_line.read_config()
  config = config_lib.read_json(workdir / "config.json")
  command_line.override(config)
  return config


def main(argv: Sequence[str]) -> None:
  """Trains or evaluates. Exits with 128 + signal if a signal stopped the run after a save."""
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag: flags begin with --")
  options = flags.FLAGS
  workdir = storage.path_of(options.workdir or f"runs/{pathlib.Path(options.config).stem}")
  config = read_config(workdir)
  config_lib.validate(config)  # first, because initializing the processes reads a setting
  with processes.initialized(
    options.coordinator,
    options.num_processes,
    options.process_id,
    heartbeat_seconds=config.run.heartbeat_seconds,
  ):
    _dispatch(config, workdir)


def _dispatch(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  import jax

  from convmixer_jax.native import xla_cache

  with needs("train"):
    from convmixer_jax.training.evaluate import evaluate_checkpoint, evaluate_weights
    from convmixer_jax.training.loop import train

  xla_cache.use_cache()
  options = flags.FLAGS
  if options.mode == "train":
    if signum := train(config, workdir):
      sys.exit(128 + signum)
    return
  if "init_from" in command_line.overrides() and config.init_from:
    if options.step is not None:
      raise UserError(
        "--step names a checkpoint, but --config.init_from evaluates other weights: give only one"
      )
    found = evaluate_weights(config, per_class=options.per_class)
  else:
    found = evaluate_checkpoint(config, workdir, options.step, per_class=options.per_class)
  if jax.process_index() == 0:
    print(json.dumps(found))


def run() -> None:
  """The entry point."""
  define_flags(sys.argv)
  cli.run(main)


if __name__ == "__main__":
  run()
