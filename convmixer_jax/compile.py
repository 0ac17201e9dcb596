"""`convmixer-compile`, or `python -m convmixer_jax.compile`: what a run needs, before renting it.

  python -m convmixer_jax.compile --config=imagenet_1536_20 --target=v5p:4x4x8
  python -m convmixer_jax.compile --config=imagenet_768_32 --target=h100x8 --json \\
    --config.data.batch_size=1024 --config.parallel.fsdp=8

Compiles the training and the evaluation step as convmixer-train would on these devices, with the
compiler for them, and without the devices or the data. It prints the memory that the steps take and
what to change if a device has too little, the bytes that they move, a bound on the speed, what the
devices send to each other, and how long compilation takes. No step is run. All sizes are those of
one device, and the compiler's account. A full model takes minutes for each program;
--config.model.depth=1 is a quick trial.
"""

from collections.abc import Sequence
import contextlib
import copy
import json
import logging
import math
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from absl import flags
import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import cli, depthwise
from convmixer_jax import config as config_lib
from convmixer_jax.aot import (
  account,
  advice,
  candidates,
  cycles,
  lowered,
  report,
  roofline,
  targets,
)
from convmixer_jax.aot.account import Account
from convmixer_jax.aot.targets import Target
from convmixer_jax.config import command_line
from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import sharding
from convmixer_jax.training import build, choice

_log = logging.getLogger(__name__)


class Compilation:
  """Compiles the steps of configs for a target.

  Args:
    target: prepared, see `targets.prepare`.
    steps_per_epoch: for the schedule.
    dump: to which libtpu writes the schedules of its programs; None if it does not.
  """

  def __init__(self, target: Target, steps_per_epoch: int, dump: pathlib.Path | None = None):
    self.target, self._steps_per_epoch, self._dump = target, steps_per_epoch, dump
    self.devices = target.devices()
    self.parameter_sizes: set[int] = set()

  def mesh(self, config: config_dict.ConfigDict) -> Mesh:
    """The mesh of `main` on these devices."""
    return sharding.make_mesh(self.devices, config.parallel.fsdp)

  def train(self, config: config_dict.ConfigDict, what: str = "the training step") -> Account:
    """The account of the training step."""
    if self._dump is not None:  # keep only this program's schedules
      shutil.rmtree(self._dump)
      self._dump.mkdir()

    def lower() -> jax.stages.Lowered:
      step, state = lowered.lower_train_step(
        config, self.mesh(config), steps_per_epoch=self._steps_per_epoch
      )
      self.parameter_sizes = {leaf.size for leaf in jax.tree.leaves(state.params)}
      return step

    return account.compiled(what, lower)

  def evaluate(self, config: config_dict.ConfigDict) -> Account:
    """The account of the evaluation step."""
    return account.compiled(
      "the evaluation step", lambda: lowered.lower_eval_step(config, self.mesh(config))
    )

  def cycles(self, train: Account) -> dict[str, cycles.Cycles] | None:
    """The cycles of the training step that was compiled last."""
    if self._dump is None or train.program is None or self.target.peaks is None:
      return None
    return cycles.by_part(train.program, self._dump, self.target.peaks)


def resolve(config: config_dict.ConfigDict, target: Target) -> tuple[config_dict.ConfigDict, int]:
  """The validated config, and its steps per epoch, without data if possible.

  Raises:
    UserError: if a setting is invalid, or a batch does not divide over the devices.
  """
  config = build.resolve(config)
  data = config.data
  build.check_shared("batch_size", data.batch_size, target.count, config_lib.batch_unit(config))
  build.check_shared("eval_batch_size", data.eval_batch_size, target.count, 1)
  try:
    examples = len(open_source(data.dataset, data.train_split, data.data_dir))
  except UserError:
    return config, lowered.STEPS_PER_EPOCH  # the data are elsewhere
  divide = math.floor if data.drop_remainder else math.ceil
  return config, max(1, divide(examples / data.batch_size))


def examine(config: config_dict.ConfigDict, compilation: Compilation) -> report.Report:
  """All that can be told of a run; see `report`."""
  target = compilation.target
  found: report.Report = {
    "target": target.name,
    "devices": target.count,
    "device_kind": compilation.devices[0].device_kind,
    "compiler": _compiler(target),
    "batch_size": config.data.batch_size,
    "memory": target.memory,
  }
  config = copy.deepcopy(config)
  names = depthwise.CANDIDATES[target.platform]
  if config.model.depthwise is None and len(names) > 1:

    def measure(small: config_dict.ConfigDict) -> tuple[Account, float | None]:
      one = compilation.train(small, f"one block with {small.model.depthwise or 'xla'}")
      parts = compilation.cycles(one)
      return one, sum(part.with_floors for part in parts.values()) if parts else None

    winner, compared, why = candidates.compare(config, target, measure)
    found["depthwise"] = report.of_candidates(winner, compared, why)
    config.model.depthwise = choice.setting(winner.implementation)
  evaluate = compilation.evaluate(config)
  train = compilation.train(config)
  parts = compilation.cycles(train)
  found["train"] = _of_program(config, compilation, train, train=True)
  found["eval"] = _of_program(config, compilation, evaluate, train=False)
  if parts is not None:
    found["cycles"] = _of_cycles(parts, config, target)
  beside = 0 if evaluate.refused else evaluate.total - evaluate.arguments
  return found | _advice(config, compilation, train, beside)


def _advice(
  config: config_dict.ConfigDict, compilation: Compilation, train: Account, evaluation: int
) -> report.Report:
  """The verdict and the trials. Evaluation needs its temporaries beside the training state."""
  target = compilation.target
  trials = advice.cheapest_that_fits(config, train, target.count, target.memory, compilation.train)
  best = trials[-1]
  settings = " ".join(f"--config.{key}={value}" for key, value in best.settings.items())
  if not best.fits:
    verdict = "Nothing that was tried fits: take devices with more memory"
  elif not settings:
    verdict = "It fits"
  elif advice.fits(train, target.memory):
    verdict = f"It fits, and so does what takes less time: {settings}"
  else:
    verdict = f"It does not fit; this does, and costs least time: {settings}"
  if train.refused is None and train.arguments + evaluation > target.memory:
    verdict += ". The evaluation does not fit beside the state: lower --config.data.eval_batch_size"
  told = report.of_trials(trials) if len(trials) > 1 or best.settings else []
  return {"verdict": verdict, "settings": best.settings if best.fits else None, "trials": told}


def _of_program(
  config: config_dict.ConfigDict, compilation: Compilation, found: Account, *, train: bool
) -> report.Report:
  target, limits = compilation.target, None
  if target.peaks is not None and found.refused is None:
    limits = roofline.roofline(config, target.peaks, target.count, found.moved, train=train)
  told = report.of_program(found, target, limits, compilation.parameter_sizes)
  return told | {"operations_per_image": sum(roofline.operations(config, train=train))}


def _of_cycles(
  parts: dict[str, cycles.Cycles], config: config_dict.ConfigDict, target: Target
) -> report.Report:
  total = sum(parts.values(), cycles.Cycles())
  assert target.peaks is not None
  rate = config.data.batch_size * target.peaks.clock / max(total.with_floors, 1.0)
  return {
    "parts": {name: vars(part) for name, part in parts.items()},
    **vars(total),
    "images_per_second": rate,
    "blind_spots": cycles.BLIND_SPOTS,
  }


def _compiler(target: Target) -> str:
  text = f"JAX {jax.__version__}"
  if target.platform == "tpu":
    from importlib import metadata

    text += f", libtpu {metadata.version('libtpu')}"
  return text


def main(argv: Sequence[str]) -> None:
  """Compiles and prints."""
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag: flags begin with --")
  options = flags.FLAGS
  target = targets.parse(options.target)
  if options.cycles and target.platform != "tpu":
    raise UserError(f"--cycles is for TPUs, and --target is {target.name}: leave it out")
  config = command_line.read_config()
  with contextlib.ExitStack() as stack:
    dump = None
    if options.cycles:
      dump = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "schedules")
      dump.mkdir()
    targets.prepare(target, dump)
    config, steps_per_epoch = resolve(config, target)
    found = examine(config, Compilation(target, steps_per_epoch, dump))
  told: dict[str, Any] = {"config": options.config, **found}
  print(json.dumps(told, indent=1) if options.json else report.text(told))


def run() -> None:
  """The entry point."""
  command_line.define_flags(sys.argv)
  flags.DEFINE_string("target", None, targets.HELP, required=True)
  flags.DEFINE_bool("json", False, "Print JSON instead of text; sizes in bytes.")
  flags.DEFINE_bool(
    "cycles", False, "For TPUs: also the schedule's cycles by part of the step. Takes longer."
  )
  cli.run(main)


if __name__ == "__main__":
  run()
