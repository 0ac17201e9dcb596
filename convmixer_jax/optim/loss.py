"""The loss of each example, and of a batch."""

import jax
import jax.numpy as jnp
import optax

# What the loss of a batch is made of its examples' by.
LOSSES = {"mean": jnp.mean, "sum": jnp.sum}


def cross_entropy(logits_bk: jax.Array, target_bk: jax.Array) -> jax.Array:
  """Cross-entropy of each example with its soft target, [b] float32, in nats."""
  return optax.softmax_cross_entropy(logits_bk, target_bk)
