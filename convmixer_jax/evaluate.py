"""Exact evaluation: every example of the split counts once."""

import functools
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import augment, checkpoint, initial, inputs, metrics
from convmixer_jax import config as config_lib
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.model import ConvMixer
from convmixer_jax.state import make_model


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
    self.batches, self._feed = inputs.open_split(config, mesh, split, train=False)
    self._image_size, self._workers = config.data.image_size, config.run.workers
    self._replicated = mesh_lib.replicated(mesh)
    step = functools.partial(
      eval_step, model=self.model, mean=config.augment.mean, std=config.augment.std
    )
    self._step = jax.jit(step, out_shardings=self._replicated)

  def __call__(self, variables: Any) -> dict[str, float]:
    """Loss and accuracies over the whole split, and "num_examples".

    Args:
      variables: {"params", "batch_stats"} on the mesh.

    Raises:
      AssertionError: if an example was left out or counted twice.
    """
    batches = self.batches.iterate(0, len(self.batches), self._workers)
    parts = [self._step(variables, self._feed(batch)) for batch in batches]
    # Fetched after the last batch is under way, and added up in Python's float64.
    totals = jax.tree.map(lambda *xs: sum(map(float, xs)), *jax.device_get(parts))
    examples = len(self.batches.source)
    assert totals["count"] == examples, (totals["count"], examples)
    return {**metrics.averages(totals), "num_examples": examples}

  def of_checkpoint(
    self, workdir: pathlib.Path, step: int | None = None
  ) -> tuple[dict[str, float], int]:
    """The same of the newest checkpoint that can be read, or of `step`; and its step.

    Raises:
      UserError: if there is no such checkpoint.
    """
    image_shape = (1, self._image_size, self._image_size, self.batches.source.channels)
    image_bhwc = jax.ShapeDtypeStruct(image_shape, "float32")
    like = jax.eval_shape(self.model.init, jax.random.key(0), image_bhwc)
    variables, step = checkpoint.restore(workdir, like, self._replicated, step)
    return self(variables), step


def evaluate_checkpoint(
  config: config_dict.ConfigDict, workdir: pathlib.Path, step: int | None = None
) -> dict[str, float | str]:
  """The metrics of `Evaluator.of_checkpoint` on the evaluation split, with "step" and "split".

  Raises:
    UserError: if a setting is wrong, or there is no such checkpoint.
  """
  config_lib.validate(config)
  evaluator = Evaluator(config, mesh_lib.make_mesh(), config.data.eval_split)
  values, step = evaluator.of_checkpoint(workdir, step)
  return {"step": step, "split": "eval", **values}


def evaluate_weights(config: config_dict.ConfigDict) -> dict[str, float | str]:
  """The metrics of the weights `config.init_from` on the evaluation split, with its name.

  Raises:
    UserError: if a setting is wrong, or the weights do not fit it.
  """
  config_lib.validate(config)
  weights = initial.read(config, with_head=True)  # first: data may take longer
  mesh = mesh_lib.make_mesh()
  evaluator = Evaluator(config, mesh, config.data.eval_split)
  values = evaluator(jax.device_put(weights, mesh_lib.replicated(mesh)))
  return {"init_from": config.init_from, "split": "eval", **values}
