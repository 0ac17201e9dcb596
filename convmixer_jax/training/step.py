"""The training step: augmentation, model, loss, gradients, optimiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from convmixer_jax.augment import Augmentation
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.errors import check_name
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.optim.loss import LOSSES, cross_entropy
from convmixer_jax.parallel import sharding
from convmixer_jax.training import metrics


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  *,
  model: ConvMixer,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  augmentation: Augmentation,
  loss: str = "mean",
  accumulate_steps: int = 1,
  ema_decay: float | None = None,
  freeze_backbone: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on one global batch.

  Args:
    state: before the update.
    batch: "image" uint8 [b, h, w, c], "label" int32 [b], "mask" float32 [b] of ones.
    model, optimizer, schedule: those that `state` was created with, and the learning rate. Batch
      and state are sharded over `model.mesh`, see `sharding.state_sharding`.
    augmentation: of images and labels.
    loss: "mean" or "sum" over the batch.
    accumulate_steps: number of equal parts of the batch to process one after the other.
    ema_decay: decay of the average `state.ema`; None if there is none.
    freeze_backbone: train only the head: the other parameters and all running
      statistics stay fixed, and BatchNorm uses the running statistics.

  Returns:
    The state after the update, and `metrics.sums` with "learning_rate" and
    "grad_norm", the norm of the gradient before clipping.

  Raises:
    ValueError: if the loss is unknown, or the model has no mesh.
  """
  if (mesh := model.mesh) is None:
    raise ValueError("the model has no mesh to shard batch and state over: ConvMixer(mesh=...)")
  augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
  with jax.named_scope("augment"):
    image_bhwc, target_bk = augmentation(augment_key, batch["image"], batch["label"])
  arrays = (image_bhwc, target_bk, batch["mask"])
  gradient_fn = _gradient_fn(model, loss, freeze_backbone)
  params = jax.lax.with_sharding_constraint(state.params, sharding.replicated(mesh))
  if accumulate_steps == 1:
    gradients, (batch_stats, values) = gradient_fn(params, state.batch_stats, dropout_key, *arrays)
  else:
    parts = [x.reshape(accumulate_steps, -1, *x.shape[1:]) for x in arrays]
    parts = jax.lax.with_sharding_constraint(parts, sharding.batch_sharding(mesh, axis=1))
    keys = jax.random.split(dropout_key, accumulate_steps)
    gradients, (batch_stats, values) = _accumulate(
      gradient_fn, params, state.batch_stats, keys, *parts
    )
    if loss == "mean":
      gradients = jax.tree.map(lambda g: g / accumulate_steps, gradients)
  gradients = jax.lax.with_sharding_constraint(gradients, sharding.state_sharding(mesh, gradients))
  with jax.named_scope("update"):
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
  if freeze_backbone:  # adding 0 would turn -0 into 0
    params = {**state.params, "head": params["head"]}
  ema = state.ema
  if ema_decay is not None:
    now = {"params": params, "batch_stats": batch_stats}
    ema = jax.tree.map(lambda old, new: ema_decay * old + (1 - ema_decay) * new, ema, now)
  values |= {"learning_rate": schedule(state.step), "grad_norm": optax.tree.norm(gradients)}
  return TrainState(state.step + 1, params, batch_stats, opt_state, state.key, ema), values


def _gradient_fn(model: ConvMixer, loss: str, freeze_backbone: bool) -> Callable[..., Any]:
  """(params, batch_stats, key, images, targets, mask) -> gradients, (batch_stats, sums)."""
  check_name("loss", loss, LOSSES)

  def forward(module: ConvMixer, image_bhwc: jax.Array) -> jax.Array:
    if not freeze_backbone:
      return module(image_bhwc, train=True)
    pooled_bf = jax.lax.stop_gradient(module.pooled_features(image_bhwc))
    return module.classify(pooled_bf, train=True)

  def loss_fn(params, batch_stats, key, image_bhwc, target_bk, mask_b):
    logits_bk, updated = model.apply(
      {"params": params, "batch_stats": batch_stats},
      image_bhwc,
      method=forward,
      mutable=["batch_stats"],
      rngs={"dropout": key},
    )
    sums = metrics.sums(logits_bk, target_bk, mask_b)
    loss_of_batch = LOSSES[loss](cross_entropy(logits_bk, target_bk))
    return loss_of_batch, (updated["batch_stats"], sums)

  return jax.grad(loss_fn, has_aux=True)


def _accumulate(gradient_fn: Callable[..., Any], params: Any, batch_stats: Any, *parts: Any) -> Any:
  """The sums of gradients and metrics over the first axis of `parts`, computed by a scan."""

  def add(carry, part):
    batch_stats, total = carry
    gradients, (batch_stats, sums) = gradient_fn(params, batch_stats, *part)
    return (batch_stats, jax.tree.map(jnp.add, total, gradients)), sums

  start = (batch_stats, jax.tree.map(jnp.zeros_like, params))
  (batch_stats, gradients), sums = jax.lax.scan(add, start, parts)
  return gradients, (batch_stats, jax.tree.map(lambda x: x.sum(0), sums))
