"""The loss of an example and of a batch."""

import jax
import jax.numpy as jnp
import optax

# How the losses of the examples are reduced to the loss of a batch.
LOSSES = {"mean": jnp.mean, "sum": jnp.sum}


def cross_entropy(logits_bk: jax.Array, target_bk: jax.Array) -> jax.Array:
  """Cross-entropy of each example with its soft target: float32 [b], in nats."""
  return optax.softmax_cross_entropy(logits_bk, target_bk)
