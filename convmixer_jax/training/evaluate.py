"""The metrics of a checkpoint, or of weights from elsewhere."""

import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax.checkpoint import manager
from convmixer_jax.model.variables import shapes
from convmixer_jax.parallel import sharding
from convmixer_jax.training import build, init_from


def restore_variables(
  config: config_dict.ConfigDict, mesh: Mesh, workdir: pathlib.Path, step: int | None = None
) -> tuple[Any, int]:
  """{"params", "batch_stats"} of the newest checkpoint that can be read, or of `step`; its step.

  It takes no data.

  Raises:
    UserError: if there is no such checkpoint.
  """
  model, channels = build.make_model(config, mesh), len(config.augment.mean)
  return manager.restore(workdir, shapes(model, channels, sharding.replicated(mesh)), step)


def evaluate_checkpoint(
  config: config_dict.ConfigDict, workdir: pathlib.Path, step: int | None = None
) -> dict[str, float | str]:
  """The metrics of the newest checkpoint that can be read, or of `step`, on the evaluation split.

  Args:
    config: see `config.base`.
    workdir: of the run.
    step: of the checkpoint.

  Returns:
    Those of `Evaluator`, with "step" and "split".

  Raises:
    UserError: if a setting is wrong, or there is no such checkpoint.
  """
  config, mesh = build.resolve(config), sharding.make_mesh()
  evaluator = build.make_evaluator(config, mesh, config.data.eval_split)
  variables, step = restore_variables(config, mesh, workdir, step)
  return {"step": step, "split": "eval", **evaluator(variables)}


def evaluate_weights(config: config_dict.ConfigDict) -> dict[str, float | str]:
  """The metrics of the weights `config.init_from` on the evaluation split, with its name.

  Raises:
    UserError: if a setting is wrong, or the weights do not fit it.
  """
  config, mesh = build.resolve(config), sharding.make_mesh()
  weights = init_from.read(config, with_head=True)  # first: data may take longer
  evaluator = build.make_evaluator(config, mesh, config.data.eval_split)
  values = evaluator(
    jax.tree.map(lambda x: sharding.device_put(x, sharding.replicated(mesh)), weights)
  )
  return {"init_from": config.init_from, "split": "eval", **values}
