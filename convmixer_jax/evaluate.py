"""Exact evaluation: every example of the split counts once."""

import functools
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import augment, checkpoint, inputs, metrics
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
  return metrics.sums(logits_bk, batch["label"], batch["mask"])


class Evaluator:
  """The evaluation split of a config, and the compiled step over it.

  Args:
    config: see `config.base`.
    mesh: where.

  Raises:
    UserError: if the data are missing, or do not fit the rest of the config.
  """

  def __init__(self, config: config_dict.ConfigDict, mesh: Mesh):
    self.model = make_model(config, mesh)
    self.batches, self._feed = inputs.open_split(config, mesh, train=False)
    self._workers = config.run.workers
    step = functools.partial(
      eval_step, model=self.model, mean=config.augment.mean, std=config.augment.std
    )
    self._step = jax.jit(step, out_shardings=mesh_lib.replicated(mesh))

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


def evaluate_checkpoint(
  config: config_dict.ConfigDict, workdir: pathlib.Path, step: int | None = None
) -> dict[str, float | str]:
  """Metrics of the newest checkpoint that can be read, or of `step`, and that step.

  Raises:
    UserError: if a setting is wrong, or there is no such checkpoint.
  """
  config_lib.validate(config)
  mesh = mesh_lib.make_mesh()
  evaluator = Evaluator(config, mesh)
  size, channels = config.data.image_size, evaluator.batches.source.channels
  image_bhwc = jax.ShapeDtypeStruct((1, size, size, channels), "float32")
  like = jax.eval_shape(evaluator.model.init, jax.random.key(0), image_bhwc)
  variables, step = checkpoint.restore(workdir, like, mesh_lib.replicated(mesh), step)
  return {"step": step, "split": "eval", **evaluator(variables)}
