"""Exact evaluation: every example of the split counts once."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.sharding import Mesh

from convmixer_jax import augment, metrics
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.data import Batches
from convmixer_jax.model import ConvMixer

EvalStep = Callable[[Any, dict[str, jax.Array]], metrics.Sums]


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


def make_eval_step(
  model: ConvMixer, mesh: Mesh, mean: tuple[float, ...], std: tuple[float, ...]
) -> EvalStep:
  """`eval_step`, compiled, its sums on every device."""
  step = functools.partial(eval_step, model=model, mean=mean, std=std)
  return jax.jit(step, out_shardings=mesh_lib.replicated(mesh))


def evaluate(
  step: EvalStep, variables: Any, batches: Batches, feed: mesh_lib.Feed, workers: int = 0
) -> dict[str, float]:
  """Loss and accuracies over a whole split, and "num_examples".

  Args:
    step: from `make_eval_step`.
    variables: {"params", "batch_stats"} on the mesh.
    batches: of the split, made with `train=False`.
    feed: puts them on the mesh.
    workers: processes that decode.

  Raises:
    AssertionError: if an example was left out or counted twice.
  """
  parts = [step(variables, feed(b)) for b in batches.iterate(0, len(batches), workers)]
  # Fetched after the last batch is under way, and added up in Python's float64.
  totals = jax.tree.map(lambda *xs: sum(map(float, xs)), *jax.device_get(parts))
  assert totals["count"] == len(batches.source), (totals["count"], len(batches.source))
  return {**metrics.averages(totals), "num_examples": len(batches.source)}
