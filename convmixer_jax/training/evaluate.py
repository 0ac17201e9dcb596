"""Evaluates a checkpoint, or weights from elsewhere."""

import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax.checkpoint import manager
from convmixer_jax.model.variables import shapes
from convmixer_jax.parallel import sharding
from convmixer_jax.training import build, init_from
from convmixer_jax.training.evaluator import Evaluator


def restore_variables(
  config: config_dict.ConfigDict, mesh: Mesh, workdir: pathlib.Path, step: int | None = None
) -> tuple[Any, int]:
  """Reads {"params", "batch_stats"} of a checkpoint, and returns them with its step.

  It needs no data.

  Args:
    config: see `config.base`.
    mesh: devices to place the variables on.
    workdir: directory of the run.
    step: which checkpoint; None for the latest readable one.

  Raises:
    UserError: if there is no such checkpoint.
  """
  model, channels = build.make_model(config, mesh), len(config.augment.mean)
  return manager.restore(workdir, shapes(model, channels, sharding.replicated(mesh)), step)


def evaluate_checkpoint(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  step: int | None = None,
  *,
  per_class: bool = False,
) -> dict[str, Any]:
  """Evaluates a checkpoint on the evaluation split.

  Args:
    config: see `config.base`.
    workdir: directory of the run.
    step: which checkpoint; None for the latest readable one.
    per_class: also return "per_class_accuracy", {class name: accuracy}.

  Returns:
    The metrics of `Evaluator`, and "step" and "split".

  Raises:
    UserError: if a setting is invalid, or there is no such checkpoint.
  """
  config, mesh = build.resolve(config), sharding.make_mesh()
  evaluator = build.make_evaluator(config, mesh, config.data.eval_split)
  variables, step = restore_variables(config, mesh, workdir, step)
  return {"step": step, "split": "eval", **_metrics(evaluator, variables, per_class)}


def evaluate_weights(config: config_dict.ConfigDict, *, per_class: bool = False) -> dict[str, Any]:
  """Evaluates the weights `config.init_from` on the evaluation split.

  Args:
    config: see `config.base`.
    per_class: also return "per_class_accuracy", {class name: accuracy}.

  Returns:
    The metrics of `Evaluator`, and "init_from" and "split".

  Raises:
    UserError: if a setting is invalid, or the weights do not match the config.
  """
  config, mesh = build.resolve(config), sharding.make_mesh()
  weights = init_from.read(config, with_head=True)  # before the data, which may take longer
  evaluator = build.make_evaluator(config, mesh, config.data.eval_split)
  variables = jax.tree.map(lambda x: sharding.device_put(x, sharding.replicated(mesh)), weights)
  values = _metrics(evaluator, variables, per_class)
  return {"init_from": config.init_from, "split": "eval", **values}


def _metrics(evaluator: Evaluator, variables: Any, per_class: bool) -> dict[str, Any]:
  found: dict[str, Any] = evaluator(variables)
  if per_class:
    names = evaluator.batches.source.class_names
    accuracies = evaluator.predict(variables).per_class(len(names))
    found["per_class_accuracy"] = dict(zip(names, accuracies, strict=True))
  return found
