"""A loop over layers of one kind, which is compiled once, and may keep little for the gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# (x, one layer's parameters, its statistics) -> y of x's shape and type, updated statistics
Layer = Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]]


def scan(layer: Layer, x: jax.Array, params: Any, stats: Any) -> tuple[jax.Array, Any]:
  """`x` after all layers, and their updated statistics.

  Args:
    layer: what each of them does.
    x: the input of the first.
    params, stats: of all layers, along the first axis of each array.
  """
  return jax.lax.scan(lambda x, variables: layer(x, *variables), x, (params, stats))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_with_remat(layer: Layer, x: jax.Array, params: Any, stats: Any) -> tuple[jax.Array, Any]:
  """As `scan`, but the gradient keeps the inputs of the layers alone and computes the rest again.

  There is no gradient by the statistics.
  """
  return scan(layer, x, params, stats)


def _forward(layer: Layer, x: jax.Array, params: Any, stats: Any) -> tuple[Any, Any]:
  def body(x: jax.Array, variables: Any) -> tuple[jax.Array, Any]:
    y, updated = layer(x, *variables)
    return y, (updated, _bits(x))

  y, (updated, inputs) = jax.lax.scan(body, x, (params, stats))
  return (y, updated), (inputs, params, stats)


def _backward(layer: Layer, kept: Any, gradients: Any) -> tuple[jax.Array, Any, Any]:
  inputs, params, stats = kept
  y_grad, _ = gradients
  dtype = y_grad.dtype

  def body(y_grad: jax.Array, kept: Any) -> tuple[jax.Array, Any]:
    bits, params, stats = kept
    _, pullback = jax.vjp(
      lambda x, params: layer(x, params, stats)[0], _unbits(bits, dtype), params
    )
    return pullback(y_grad)

  x_grad, params_grad = jax.lax.scan(body, y_grad, (inputs, params, stats), reverse=True)
  return x_grad, params_grad, jax.tree.map(jnp.zeros_like, stats)


scan_with_remat.defvjp(_forward, _backward)


# XLA's CPU backend, which has no arithmetic on bfloat16, would keep the maps of all layers as
# float32: twice the memory. It does not do that to integers.
def _bits(x: jax.Array) -> jax.Array:
  return x.view(jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _unbits(bits: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  return bits.view(dtype) if bits.dtype == jnp.uint16 else bits
