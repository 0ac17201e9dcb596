"""Learning-rate schedules and the AdamW chain."""

import jax
import jax.numpy as jnp
import optax


def onecycle(peak: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
  """The authors' piecewise-linear schedule, which is not PyTorch's OneCycleLR.

  Over epochs t it goes through 0 at t = 0, `peak` at 2/5 of the epochs, peak/20
  at 4/5 and 0 at the end, the knots rounded down to whole epochs. Update i,
  counted from 0, has t = (i + 1) / steps_per_epoch, so the last one has
  learning rate 0. Source: the authors' timm, `onecycle_lr.py` and `train.py`.
  """
  knots = (0, 2 * epochs // 5, 4 * epochs // 5, epochs)
  values = (0.0, peak, peak / 20, 0.0)
  # Short runs put two knots at the same t; the later one counts.
  points = dict(zip(knots, values, strict=True))

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    t = (jnp.asarray(count, jnp.float32) + 1) / steps_per_epoch
    return jnp.interp(t, jnp.array(list(points), jnp.float32), jnp.array(list(points.values())))

  return schedule


def make_schedule(
  name: str, *, peak: float, epochs: int, steps_per_epoch: int, warmup_epochs: int = 0
) -> optax.Schedule:
  """Learning rate by number of the update, from 0.

  Args:
    name: "onecycle" (the authors'), "cosine" (to 0, after a linear warm-up of
      `warmup_epochs`) or "optax_onecycle" (optax's cosine one, with its defaults).
    peak: the greatest learning rate.
    epochs: length of the schedule.
    steps_per_epoch: updates in an epoch.
    warmup_epochs: for "cosine" only.
  """
  steps = epochs * steps_per_epoch
  if name == "onecycle":
    return onecycle(peak, epochs, steps_per_epoch)
  if name == "cosine":
    return optax.warmup_cosine_decay_schedule(0, peak, warmup_epochs * steps_per_epoch, steps)
  return optax.cosine_onecycle_schedule(steps, peak)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales gradients by min(1, max_norm / (norm + 1e-6)), as PyTorch's clip_grad_norm_ does."""

  def update(updates, state, params=None):
    del params
    factor = jnp.minimum(1, max_norm / (optax.tree.norm(updates) + 1e-6))
    return jax.tree.map(lambda g: g * factor, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
  schedule: optax.Schedule,
  *,
  weight_decay: float,
  decay: str,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """AdamW as PyTorch's: the decay is decoupled and multiplied by the learning rate.

  Args:
    schedule: learning rate by number of the update.
    weight_decay: its factor.
    decay: "all" parameters, or "kernels": biases and BatchNorm's scales are
      left alone, as in timm (`optim_factory.py`).
    b1, b2, eps: Adam's.
    clip_norm: greatest norm of the whole gradient, or None.
  """
  mask = None if decay == "all" else kernels_only
  adamw = optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=mask)
  return adamw if clip_norm is None else optax.chain(clip_by_global_norm(clip_norm), adamw)


def kernels_only(params: optax.Params) -> optax.Params:
  """True for the arrays of more than one axis: every kernel, no bias and no scale."""
  return jax.tree.map(lambda p: p.ndim > 1, params)
