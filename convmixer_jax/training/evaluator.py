"""Exact evaluation: every readable example of the split counts once."""

from collections.abc import Callable, Iterator
import functools
from typing import Any, cast

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from convmixer_jax.data.batches import Batches
from convmixer_jax.data.shard_batch import ShardBatch
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.parallel import sharding
from convmixer_jax.results.predictions import Predictions
from convmixer_jax.training import compiling, metrics


def eval_step(
  variables: Any,
  batch: dict[str, jax.Array],
  *,
  model: ConvMixer,
  normalize: Callable[[jax.Array], jax.Array],
) -> metrics.Sums:
  """Sums of the metrics over one batch, using the running statistics."""
  logits_bk: Any = model.apply(variables, normalize(batch["image"]))
  target_bk = jax.nn.one_hot(batch["label"], logits_bk.shape[-1])
  return metrics.sums(logits_bk, target_bk, batch["mask"])


def predict_step(
  variables: Any,
  batch: dict[str, jax.Array],
  *,
  model: ConvMixer,
  normalize: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
  """The mask and the fields of `Predictions` for one batch, [b] each."""
  logits_bk: Any = model.apply(variables, normalize(batch["image"]))
  probability_bk = jax.nn.softmax(logits_bk)
  true_b1 = jnp.take_along_axis(probability_bk, batch["label"][:, None], 1)
  return {
    "mask": batch["mask"],
    "label_n": batch["label"],
    "predicted_n": logits_bk.argmax(-1),
    "probability_n": probability_bk.max(-1),
    "true_probability_n": true_b1[:, 0],
  }


def jitted(
  step: Callable[..., Any], model: ConvMixer, normalize: Callable[[jax.Array], jax.Array]
) -> Any:
  """`eval_step` or `predict_step`, whose results are on every device of the model's mesh."""
  return jax.jit(
    functools.partial(step, model=model, normalize=normalize),
    out_shardings=sharding.replicated(cast(Mesh, model.mesh)),
  )


class Evaluator:
  """Evaluates a model on one split of the data.

  Args:
    model: the model to evaluate.
    batches, shard_batch: of the split, for evaluation.
    normalize: turns uint8 images into the model's input.
    workers: number of decoding processes; 0 for threads.
    name: name of the split, for the log.
  """

  def __init__(
    self,
    model: ConvMixer,
    batches: Batches,
    shard_batch: ShardBatch,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    workers: int,
    name: str,
  ):
    self.model, self.batches = model, batches
    self._shard_batch, self._workers = shard_batch, workers
    replicated = sharding.replicated(shard_batch.mesh)

    def compiled(step: Any, what: str) -> compiling.Announced:
      return compiling.Announced(jitted(step, model, normalize), f'{what} on "{name}"')

    self._gather = jax.jit(lambda variables: variables, out_shardings=replicated)
    self._step = compiled(eval_step, "the evaluation step")
    self._predict = compiled(predict_step, "the prediction step")

  def __call__(
    self, variables: Any, after_batch: Callable[[], object] = lambda: None
  ) -> dict[str, float]:
    """Loss and accuracies over the split, and "num_examples"; corrupt examples are excluded.

    Args:
      variables: {"params", "batch_stats"} on the mesh.
      after_batch: called after each batch; an exception of its own ends the evaluation.

    Raises:
      AssertionError: if a readable example was skipped or counted twice.
      UserError: if more than `config.run.max_corrupt` examples are corrupt.
    """
    parts = []
    for part in self._outputs(self._step, variables):
      parts.append(part)
      after_batch()
    totals = jax.tree.map(lambda *xs: sum(map(float, xs)), *parts)  # in Python's float64
    examples = len(self.batches.source) - self._num_corrupt()
    assert totals["count"] == examples, (totals["count"], examples)
    return {**metrics.averages(totals), "num_examples": examples}

  def predict(self, variables: Any) -> Predictions:
    """The predictions for the examples `batches.readable()`, in that order.

    Args:
      variables: {"params", "batch_stats"} on the mesh.

    Raises:
      AssertionError: if a readable example was skipped or counted twice.
    """
    parts = list(self._outputs(self._predict, variables))
    fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    is_example = fields.pop("mask") > 0
    assert is_example.sum() == len(self.batches.readable()), is_example.sum()
    return Predictions(**{name: values[is_example] for name, values in fields.items()})

  def _num_corrupt(self) -> int:
    """The number of examples that any process found to be corrupt."""
    is_corrupt = np.ones(len(self.batches.source), bool)
    is_corrupt[self.batches.readable()] = False
    found = multihost_utils.process_allgather(is_corrupt).reshape(-1, len(is_corrupt))
    return int(found.any(0).sum())

  def _outputs(self, step: Any, variables: Any) -> Iterator[Any]:
    """Yields the output of `step` for each batch, fetched while the next batch is computed.

    At most two batches are on the device at a time.
    """
    variables = self._gather(variables)
    pending = None
    for batch in self.batches.iterate(0, len(self.batches), self._workers):
      before, pending = pending, step(variables, self._shard_batch(batch))
      if before is not None:
        yield jax.device_get(before)
    yield jax.device_get(pending)
