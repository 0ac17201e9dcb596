"""Adam with its kinds of decay and clipping."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import optax

from convmixer_jax.errors import check_name


def clip_by_norm(max_norm: float, each: bool = False) -> optax.GradientTransformation:
  """Scales gradients by min(1, max_norm / (norm + 1e-6)), as PyTorch's clip_grad_norm_ does.

  Args:
    max_norm: of the whole gradient.
    each: of each array by itself instead, as Flux does it, without the 1e-6.
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
  """Adam whose `eps` is the "epsilon hat" of its paper (section 2), as Keras's and TensorFlow's is.

  Update t is sqrt(1 - b2**t) / (1 - b1**t) * m / (sqrt(v) + eps): what `optax.scale_by_adam`
  computes with eps / sqrt(1 - b2**t), which for b2 = 0.999 is 32 eps at first. The state is that
  of `optax.scale_by_adam`.
  """

  def update(updates, state, params=None):
    correction = jnp.sqrt(1 - b2 ** optax.safe_increment(state.count))
    return optax.scale_by_adam(b1, b2, eps / correction).update(updates, state, params)

  return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)


def kernels_only(params: optax.Params) -> optax.Params:
  """True for the arrays of more than one axis: every kernel, no bias and no scale."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


# Which parameters decay: a mask, or None for all.
DECAYS: dict[str, Callable[[optax.Params], optax.Params] | None] = {
  "all": None,
  "kernels": kernels_only,
}

# The order of the chain, of (decay by a factor, its factor, clipping, Adam, learning rate).
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
  """Adam with clipping before it and a decay of the weights; by default PyTorch's AdamW.

  Args:
    learning_rate: a number, or a schedule by number of the update.
    weight_decay: its factor.
    decay: "all" parameters, or "kernels": biases and BatchNorm's scales are
      left alone, as in timm (`optim_factory.py`).
    decay_kind: "adamw": beside Adam's step, and multiplied by the learning rate
      as PyTorch does; "unscaled": beside it and not multiplied, as in TensorFlow
      Addons; "l2": added to the gradient before clipping and Adam, as Flux's
      WeightDecay or a penalty of weight_decay / 2 on the squares.
    b1, b2, eps: Adam's.
    eps_hat: `eps` is added before the bias correction, see `scale_by_keras_adam`.
    clip_norm: greatest norm of the whole gradient, or None.
    clip_each: of each array of the gradient instead, see `clip_by_norm`.
    backbone_rate: factor on the learning rate of all but the "head".

  Raises:
    ValueError: if there is no such decay or kind of it.
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
  """The optimizer for the "head" alone: there is no update of the rest, and no state for it."""
  return optax.partition({"backbone": optax.set_to_zero(), "head": optimizer}, _parts)


def scale_backbone(factor: float) -> optax.GradientTransformation:
  """Multiplies the updates of all but the "head"."""
  return optax.partition({"backbone": optax.scale(factor), "head": optax.identity()}, _parts)


def _parts(params: optax.Params) -> dict[str, str]:
  """Which part of the model each of its layers is."""
  return {name: "head" if name == "head" else "backbone" for name in params}
