"""A loop over layers of one kind, which is compiled once, and may keep little for the gradient."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from convmixer_jax.depthwise.own_gradient import own_gradient

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


def scan_with_remat(
  layer: Layer, x: jax.Array, params: Any, stats: Any, *, with_gradient: bool = True
) -> tuple[jax.Array, Any]:
  """As `scan`, but the gradient keeps the inputs of the layers alone and computes the rest again.

  There is no gradient by the statistics, unless `with_gradient` is False, which leaves all
  derivatives to JAX.
  """
  if not with_gradient:
    return scan(jax.checkpoint(layer), x, params, stats)
  return _scan_with_gradient(x, params, stats, layer)


def _scan(x: jax.Array, params: Any, stats: Any, layer: Layer) -> tuple[jax.Array, Any]:
  return scan(layer, x, params, stats)


def _forward(x: jax.Array, params: Any, stats: Any, layer: Layer) -> tuple[Any, Any]:
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


_scan_with_gradient = own_gradient(_scan, _forward, _backward, arrays=3)


# XLA's CPU backend, which has no arithmetic on bfloat16, would keep the maps of all layers as
# float32: twice the memory. It does not do that to integers.
def _bits(x: jax.Array) -> jax.Array:
  return _bfloat16_bits(x) if x.dtype == jnp.bfloat16 else x


@jax.custom_jvp
def _bfloat16_bits(x: jax.Array) -> jax.Array:
  return x.view(jnp.uint16)


@_bfloat16_bits.defjvp
def _refuse(*_: Any) -> NoReturn:  # integers have no derivative, so it would silently be 0
  raise TypeError(
    'the gradient of a gradient with remat in bfloat16 needs depthwise="xla" or float32'
  )


def _unbits(bits: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  return bits.view(dtype) if bits.dtype == jnp.uint16 else bits
