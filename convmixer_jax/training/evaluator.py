"""Exact evaluation: every example of the split that can be read counts once."""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
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
  """Sums of the metrics over one batch, with the running statistics."""
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
  """The mask of one batch, and the fields of `Predictions`, [b] each."""
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


class Evaluator:
  """One split of the data, and the compiled step over it.

  Args:
    model: whose answers are looked at.
    batches, shard_batch: of the split, for evaluation.
    normalize: makes of uint8 images what the model takes.
    workers: processes that decode; 0 for threads.
    name: of the split, for the log.
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

    def compiled(function: Any, what: str) -> compiling.Announced:
      step = functools.partial(function, model=model, normalize=normalize)
      return compiling.Announced(jax.jit(step, out_shardings=replicated), f'{what} on "{name}"')

    self._gather = jax.jit(lambda variables: variables, out_shardings=replicated)
    self._step = compiled(eval_step, "the evaluation step")
    self._predict = compiled(predict_step, "the prediction step")

  def __call__(self, variables: Any) -> dict[str, float]:
    """Loss and accuracies over the whole split, and "num_examples", corrupt ones left out.

    Args:
      variables: {"params", "batch_stats"} on the mesh.

    Raises:
      AssertionError: if an example was left out or counted twice.
      UserError: if more examples are corrupt than `config.run.max_corrupt`.
    """
    parts = list(self._outputs(self._step, variables))
    totals = jax.tree.map(lambda *xs: sum(map(float, xs)), *parts)  # in Python's float64
    examples = len(self.batches.source) - self._num_corrupt()
    assert totals["count"] == examples, (totals["count"], examples)
    return {**metrics.averages(totals), "num_examples": examples}

  def predict(self, variables: Any) -> Predictions:
    """The answers to the examples `batches.readable()` of the split, in their order.

    Args:
      variables: {"params", "batch_stats"} on the mesh.

    Raises:
      AssertionError: if an example was left out or counted twice.
    """
    parts = list(self._outputs(self._predict, variables))
    fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    is_example = fields.pop("mask") > 0
    assert is_example.sum() == len(self.batches.readable()), is_example.sum()
    return Predictions(**{name: values[is_example] for name, values in fields.items()})

  def _num_corrupt(self) -> int:
    """Examples that any process found to be corrupt."""
    is_corrupt = np.ones(len(self.batches.source), bool)
    is_corrupt[self.batches.readable()] = False
    found = multihost_utils.process_allgather(is_corrupt).reshape(-1, len(is_corrupt))
    return int(found.any(0).sum())

  def _outputs(self, step: Any, variables: Any) -> Iterator[Any]:
    """What `step` makes of each batch, fetched while the next one is under way.

    So there are two batches on the device at most, however many the split has.
    """
    variables = self._gather(variables)
    pending = None
    for batch in self.batches.iterate(0, len(self.batches), self._workers):
      before, pending = pending, step(variables, self._shard_batch(batch))
      if before is not None:
        yield jax.device_get(before)
    yield jax.device_get(pending)
