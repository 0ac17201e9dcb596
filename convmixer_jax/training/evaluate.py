"""Exact evaluation: every example of the split that can be read counts once."""

import functools
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict
import numpy as np

from convmixer_jax import augment
from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint import manager
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.model.variables import shapes
from convmixer_jax.parallel import sharding
from convmixer_jax.results.predictions import Predictions
from convmixer_jax.training import build, compiling, init_from, metrics
from convmixer_jax.training.build import make_model


def eval_step(
  variables: Any,
  batch: dict[str, jax.Array],
  *,
  model: ConvMixer,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> metrics.Sums:
  """Sums of the metrics over one batch, with the running statistics."""
  logits_bk: Any = model.apply(variables, augment.normalize(batch["image"], mean, std))
  target_bk = jax.nn.one_hot(batch["label"], logits_bk.shape[-1])
  return metrics.sums(logits_bk, target_bk, batch["mask"])


def predict_step(
  variables: Any,
  batch: dict[str, jax.Array],
  *,
  model: ConvMixer,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> dict[str, jax.Array]:
  """The mask of one batch, and the fields of `Predictions`, [b] each."""
  logits_bk: Any = model.apply(variables, augment.normalize(batch["image"], mean, std))
  probability_bk = jax.nn.softmax(logits_bk)
  true_b1 = jnp.take_along_axis(probability_bk, batch["label"][:, None], 1)
  return {
    "mask": batch["mask"],
    "label_n": batch["label"],
    "predicted_n": logits_bk.argmax(-1),
    "probability_n": probability_bk.max(-1),
    "true_probability_n": true_b1[:, 0],
  }


class Evaluator:
  """One split of a config's data, and the compiled step over it.

  Args:
    config: see `config.base`.
    mesh: where.
    split: such as `config.data.eval_split`.

  Raises:
    UserError: if the data are missing, or do not fit the rest of the config.
  """

  def __init__(self, config: config_dict.ConfigDict, mesh: Mesh, split: str):
    self.model = make_model(config, mesh)
    self.batches, self._feed = build.open_split(config, mesh, split, train=False)
    self._config, self._mesh, self._workers = config, mesh, config.run.workers
    replicated = sharding.replicated(mesh)
    settings = {"model": self.model, "mean": config.augment.mean, "std": config.augment.std}
    step, predict = (functools.partial(f, **settings) for f in (eval_step, predict_step))
    self._gather = jax.jit(lambda variables: variables, out_shardings=replicated)
    self._step = compiling.Announced(
      jax.jit(step, out_shardings=replicated), f'the evaluation step on "{split}"'
    )
    self._predict = compiling.Announced(
      jax.jit(predict, out_shardings=replicated), f'the prediction step on "{split}"'
    )

  def __call__(self, variables: Any) -> dict[str, float]:
    """Loss and accuracies over the whole split, and "num_examples", damaged ones left out.

    Args:
      variables: {"params", "batch_stats"} on the mesh.

    Raises:
      AssertionError: if an example was left out or counted twice.
      UserError: if more examples are damaged than `config.run.max_damaged`.
    """
    parts = self._parts(self._step, variables)
    # Fetched after the last batch is under way, and added up in Python's float64.
    totals = jax.tree.map(lambda *xs: sum(map(float, xs)), *jax.device_get(parts))
    examples = len(self.batches.source) - self._num_damaged()
    assert totals["count"] == examples, (totals["count"], examples)
    return {**metrics.averages(totals), "num_examples": examples}

  def predict(self, variables: Any) -> Predictions:
    """The answers to the examples `batches.readable()` of the split, in their order.

    Args:
      variables: {"params", "batch_stats"} on the mesh.

    Raises:
      AssertionError: if an example was left out or counted twice.
    """
    parts = jax.device_get(self._parts(self._predict, variables))
    fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    is_example = fields.pop("mask") > 0
    assert is_example.sum() == len(self.batches.readable()), is_example.sum()
    return Predictions(**{name: values[is_example] for name, values in fields.items()})

  def _num_damaged(self) -> int:
    """Examples that any process found to be damaged."""
    is_damaged = np.ones(len(self.batches.source), bool)
    is_damaged[self.batches.readable()] = False
    found = multihost_utils.process_allgather(is_damaged).reshape(-1, len(is_damaged))
    return int(found.any(0).sum())

  def _parts(self, step: Any, variables: Any) -> list[Any]:
    """What `step` makes of each batch, still under way."""
    variables = self._gather(variables)
    batches = self.batches.iterate(0, len(self.batches), self._workers)
    return [step(variables, self._feed(batch)) for batch in batches]

  def of_checkpoint(
    self, workdir: pathlib.Path, step: int | None = None
  ) -> tuple[dict[str, float], int]:
    """The same of the newest checkpoint that can be read, or of `step`; and its step.

    Raises:
      UserError: if there is no such checkpoint.
    """
    variables, step = restore_variables(self._config, self._mesh, workdir, step)
    return self(variables), step


def restore_variables(
  config: config_dict.ConfigDict, mesh: Mesh, workdir: pathlib.Path, step: int | None = None
) -> tuple[Any, int]:
  """{"params", "batch_stats"} of the newest checkpoint that can be read, or of `step`; its step.

  It takes no data.

  Raises:
    UserError: if there is no such checkpoint.
  """
  model, channels = make_model(config, mesh), len(config.augment.mean)
  return manager.restore(workdir, shapes(model, channels, sharding.replicated(mesh)), step)


def evaluate_checkpoint(
  config: config_dict.ConfigDict, workdir: pathlib.Path, step: int | None = None
) -> dict[str, float | str]:
  """The metrics of `Evaluator.of_checkpoint` on the evaluation split, with "step" and "split".

  Raises:
    UserError: if a setting is wrong, or there is no such checkpoint.
  """
  config_lib.validate(config)
  config = build.resolve(config)
  evaluator = Evaluator(config, sharding.make_mesh(), config.data.eval_split)
  values, step = evaluator.of_checkpoint(workdir, step)
  return {"step": step, "split": "eval", **values}


def evaluate_weights(config: config_dict.ConfigDict) -> dict[str, float | str]:
  """The metrics of the weights `config.init_from` on the evaluation split, with its name.

  Raises:
    UserError: if a setting is wrong, or the weights do not fit it.
  """
  config_lib.validate(config)
  config = build.resolve(config)
  weights = init_from.read(config, with_head=True)  # first: data may take longer
  mesh = sharding.make_mesh()
  evaluator = Evaluator(config, mesh, config.data.eval_split)
  values = evaluator(jax.tree.map(lambda x: sharding.place(x, sharding.replicated(mesh)), weights))
  return {"init_from": config.init_from, "split": "eval", **values}
