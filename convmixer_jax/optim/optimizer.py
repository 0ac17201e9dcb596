"""Adam with several kinds of weight decay and gradient clipping."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from convmixer_jax.errors import check_name


def clip_by_norm(max_norm: float, each: bool = False) -> optax.GradientTransformation:
  """Scales gradients by min(1, max_norm / (norm + 1e-6)), as PyTorch's clip_grad_norm_ does.

  Args:
    max_norm: maximum norm of the whole gradient.
    each: clip each array separately instead, as Flux does, without the 1e-6.
  """

  def clipped(g: jax.Array, norm: jax.Array) -> jax.Array:
    return g * jnp.minimum(1, max_norm / norm)

  def update(updates, state, params=None):
    del params
    if each:  # a gradient of 0 stays 0
      tiny = jnp.finfo(jnp.float32).tiny
      return jax.tree.map(lambda g: clipped(g, jnp.linalg.norm(g.ravel()) + tiny), updates), state
    norm = optax.tree.norm(updates) + 1e-6
    return jax.tree.map(lambda g: clipped(g, norm), updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_keras_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam whose `eps` is the "epsilon hat" of the paper (section 2), as in Keras and TensorFlow.

  Update t is sqrt(1 - b2**t) / (1 - b1**t) * m / (sqrt(v) + eps). This equals
  `optax.scale_by_adam` with eps / sqrt(1 - b2**t), which for b2 = 0.999 starts at 32 eps. The
  state is that of `optax.scale_by_adam`.
  """

  def update(updates, state, params=None):
    correction = jnp.sqrt(1 - b2 ** optax.safe_increment(state.count))
    return optax.scale_by_adam(b1, b2, eps / correction).update(updates, state, params)

  return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)


def kernels_only(params: Any) -> Any:
  """True for arrays with more than one axis: kernels, but not biases and scales."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


# Which parameters weight decay applies to: a mask, or None for all.
DECAYS: dict[str, Callable[[Any], Any] | None] = {
  "all": None,
  "kernels": kernels_only,
}

# Kind -> order of the chain, given (decay transformation, factor, clipping, Adam, learning rate).
DECAY_KINDS: dict[str, Callable[..., tuple[optax.GradientTransformation, ...]]] = {
  "adamw": lambda decay, factor, clip, adam, by_rate: (clip, adam, decay(factor), by_rate),
  "unscaled": lambda decay, factor, clip, adam, by_rate: (clip, adam, by_rate, decay(-factor)),
  "l2": lambda decay, factor, clip, adam, by_rate: (decay(factor), clip, adam, by_rate),
}


def make_optimizer(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: float,
  decay: str,
  decay_kind: str = "adamw",
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  eps_hat: bool = False,
  clip_norm: float | None = None,
  clip_each: bool = False,
  backbone_rate: float = 1.0,
) -> optax.GradientTransformation:
  """Adam with gradient clipping and weight decay; by default PyTorch's AdamW.

  Args:
    learning_rate: a number, or a schedule over update steps.
    weight_decay: decay factor.
    decay: "all" parameters, or "kernels", which excludes biases and BatchNorm's scales, as in
      timm (`optim_factory.py`).
    decay_kind: "adamw": decoupled from Adam and multiplied by the learning rate, as in PyTorch;
      "unscaled": decoupled and not multiplied, as in TensorFlow Addons; "l2": added to the
      gradient before clipping and Adam, like Flux's WeightDecay or a penalty of
      weight_decay / 2 on the squared weights.
    b1, b2, eps: Adam's.
    eps_hat: add `eps` before the bias correction, see `scale_by_keras_adam`.
    clip_norm: maximum norm of the whole gradient, or None.
    clip_each: clip each array of the gradient separately, see `clip_by_norm`.
    backbone_rate: factor on the learning rate of everything except the "head".

  Raises:
    ValueError: if `decay` or `decay_kind` is unknown.
  """
  check_name("decay", decay, DECAYS)
  check_name("decay_kind", decay_kind, DECAY_KINDS)
  decayed = functools.partial(optax.add_decayed_weights, mask=DECAYS[decay])
  clip = optax.identity() if clip_norm is None else clip_by_norm(clip_norm, clip_each)
  adam = (scale_by_keras_adam if eps_hat else optax.scale_by_adam)(b1, b2, eps)
  by_rate = optax.scale_by_learning_rate(learning_rate)
  if backbone_rate != 1:
    by_rate = optax.chain(by_rate, scale_backbone(backbone_rate))
  return optax.chain(*DECAY_KINDS[decay_kind](decayed, weight_decay, clip, adam, by_rate))


def of_head(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimizer for the "head" only; the rest has no updates and no state."""
  return optax.partition({"backbone": optax.set_to_zero(), "head": optimizer}, _parts)


def scale_backbone(factor: float) -> optax.GradientTransformation:
  """Multiplies the updates of everything except the "head"."""
  return optax.partition({"backbone": optax.scale(factor), "head": optax.identity()}, _parts)


def _parts(params: optax.Params) -> dict[str, str]:
  """Labels each layer as "head" or "backbone"."""
  return {name: "head" if name == "head" else "backbone" for name in params}
