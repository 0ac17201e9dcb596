"""The activation and batch normalisation as one function with a custom gradient.

Between two convolutions autodiff would store the activation, parts of its derivative and the
normalised feature map. This backward pass needs only the pre-activation and per-channel statistics,
and recomputes the activation.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from convmixer_jax.depthwise import gradients

# Q of `_short_erf`, from the constant on: the coefficients of least maximum error at this degree.
_SHORT_ERF = (0.79786971, 0.036392286, -8.7826654e-05, -3.6693424e-05, 1.4250044e-06)


def _exact_erf(x: jax.Array) -> jax.Array:
  """erf(x / sqrt(2))."""
  return lax.erf(x * np.float32(np.sqrt(0.5)))


def _short_erf(x: jax.Array) -> jax.Array:
  """tanh(x Q(x^2)), which is erf(x / sqrt(2)) to 3e-6, and cheaper where hardware has tanh."""
  square = x * x
  inner = jnp.full_like(x, _SHORT_ERF[-1])
  for coefficient in _SHORT_ERF[-2::-1]:
    inner = inner * square + np.float32(coefficient)
  return jnp.tanh(x * inner)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _erf(x: jax.Array, function: Callable) -> jax.Array:
  return function(x)


@_erf.defjvp
def _erf_tangent(
  function: Callable, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  # JAX 0.12's built-in derivative of erf fails under `shard_map`; that of `_short_erf` is off by
  # 2e-5, and NaN where x * x overflows.
  factor = np.float32(np.sqrt(0.5))
  slope = np.float32(2 / np.sqrt(np.pi)) * jnp.exp(-jnp.square(primals[0] * factor))
  return _erf(*primals, function), slope * (tangents[0] * factor)


def _gelu(x: jax.Array, erf: Callable = _exact_erf) -> jax.Array:
  return x * (0.5 * (1 + _erf(x, erf)))


def _gelu_with_slope(x: jax.Array, erf: Callable = _exact_erf) -> tuple[jax.Array, jax.Array]:
  # Written as 1 - erf(-x) so that it differs from the term in `_gelu`. Otherwise XLA would compute
  # one erf for all passes and write it to memory in a separate pass. This way each pass fuses its
  # own erf.
  cdf = 0.5 * (1 - _erf(-x, erf))
  pdf = np.float32(1 / np.sqrt(2 * np.pi)) * jnp.exp(-0.5 * jnp.square(x))
  return x * cdf, cdf + x * pdf


def _gelu_tanh(x: jax.Array) -> jax.Array:
  return _gelu_tanh_with_slope(x)[0]


def _gelu_tanh_with_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  scale, cubic = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)
  square = x * x
  tanh = jnp.tanh(scale * x * (1 + cubic * square))
  inner_slope = scale * (1 + 3 * cubic * square)
  return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh + x * (1 - tanh * tanh) * inner_slope)


def _relu_with_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jax.nn.relu(x), (x > 0).astype(x.dtype)


# Name -> (activation, activation with its derivative). PyTorch's GELU is the exact one; Flux's, and
# the default of `jax.nn.gelu`, is the tanh approximation.
ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
  "gelu": (_gelu, _gelu_with_slope),
  "gelu_tanh": (_gelu_tanh, _gelu_tanh_with_slope),
  "relu": (jax.nn.relu, _relu_with_slope),
}


def functions(activation: str, x: jax.Array) -> tuple[Callable, Callable]:
  """The entry of `ACTIVATIONS`, which computes in float32, as exactly as the dtype of `x` needs."""
  value, with_slope = ACTIVATIONS[activation]
  if activation == "gelu" and x.dtype == jnp.bfloat16:
    return functools.partial(value, erf=_short_erf), functools.partial(with_slope, erf=_short_erf)
  return value, with_slope


# Names, for policies of `jax.checkpoint`, of what the gradient needs: the pre-activation, and the
# mean and variance of the activation. Everything else takes one pass over the pre-activation.
KEPT = ("pre_activation", "statistics")


class Groups(NamedTuple):
  """Groups of `size` consecutive images.

  The feature maps are not sliced: per-image sums are added up by group, and each image uses its
  group's statistics. A group may therefore span several devices.
  """

  batch_axis: int
  size: int


def act_norm(
  x: jax.Array,
  activation: str,
  scale: jax.Array,
  bias: jax.Array,
  *,
  channel_axis: int,
  pre_bias: jax.Array | None = None,
  epsilon: float = 1e-5,
  groups: Groups | None = None,
  own_gradient: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Training: activation(x + pre_bias), normalised over all axes except the channel axis.

  Args:
    x: pre-activations of any rank, float32 or bfloat16.
    activation: a key of `ACTIVATIONS`.
    scale, bias: float32 [channels], applied after the normalisation.
    channel_axis: -1 for [b, h, w, c] and 0 for [c, b, h, w].
    pre_bias: float32 [channels], bias of the preceding convolution, or None. Added here, it needs
      no separate pass over memory.
    epsilon: added to the variance.
    groups: groups of images that are normalised separately; None for a single group.
    own_gradient: use the custom gradient. False leaves all derivatives to JAX, which is slower but
      supports forward mode.

  Returns:
    The normalised feature map, with the shape and dtype of x, and the mean and biased variance of
    the activations, float32 [channels] or [groups, channels]. Under a sharded `jit` the statistics
    span the global batch.

  Raises:
    ValueError: if a vector is not [channels], or `channel_axis` or `activation` is invalid.
  """
  pre_bias = jnp.zeros_like(bias) if pre_bias is None else pre_bias
  axis = _checked_axis(x, activation, channel_axis, scale=scale, bias=bias, pre_bias=pre_bias)
  x = checkpoint_name(x, KEPT[0])
  function = _act_norm_with_gradient
  if not own_gradient:  # stores as little, but recomputes more
    function = jax.checkpoint(_act_norm, static_argnums=(4, 5, 6, 7))
  return function(x, scale, bias, pre_bias, activation, axis, epsilon, groups)


def act_affine(
  x: jax.Array,
  activation: str,
  scale: jax.Array,
  bias: jax.Array,
  mean: jax.Array,
  var: jax.Array,
  *,
  channel_axis: int,
  pre_bias: jax.Array | None = None,
  epsilon: float = 1e-5,
) -> jax.Array:
  """Evaluation: activation(x + pre_bias), normalised with the given [channels] `mean` and `var`.

  Arguments and errors are as in `act_norm`.
  """
  pre_bias = jnp.zeros_like(bias) if pre_bias is None else pre_bias
  vectors = {"scale": scale, "bias": bias, "mean": mean, "var": var, "pre_bias": pre_bias}
  axis = _checked_axis(x, activation, channel_axis, **vectors)
  activated = functions(activation, x)[0](_biased(x, pre_bias, axis))
  return _normalized(activated, scale, bias, mean, lax.rsqrt(var + epsilon), axis).astype(x.dtype)


def _checked_axis(x: jax.Array, activation: str, channel_axis: int, **vectors: jax.Array) -> int:
  if activation not in ACTIVATIONS:
    raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
  if not -x.ndim <= channel_axis < x.ndim:
    raise ValueError(f"channel_axis is {channel_axis}, not an axis of x with shape {x.shape}")
  for name, vector in vectors.items():
    if vector.shape != (x.shape[channel_axis],):
      raise ValueError(f"{name} has shape {vector.shape}; it must be {(x.shape[channel_axis],)}")
  return channel_axis % x.ndim


def _act_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  pre_bias: jax.Array,
  activation: str,
  axis: int,
  epsilon: float,
  groups: Groups | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  activated = functions(activation, x)[0](_biased(x, pre_bias, axis))
  # Compute both sums in one pass over x. E[a*a] - E[a]^2 is accurate enough in float32 because the
  # mean of an activation is comparable to its deviation. Rounding can make it slightly negative.
  count = _count(x, axis, groups)
  mean = _channel_sum(activated, axis, groups) / count
  var = _channel_sum(activated * activated, axis, groups) / count - mean * mean
  mean, var = (checkpoint_name(array, KEPT[1]) for array in (mean, jnp.maximum(var, 0)))
  y = _normalized(activated, scale, bias, mean, lax.rsqrt(var + epsilon), axis, groups)
  return y.astype(x.dtype), mean, var


def _forward(x, scale, bias, pre_bias, activation, axis, epsilon, groups):
  y, mean, var = _act_norm(x, scale, bias, pre_bias, activation, axis, epsilon, groups)
  return (y, mean, var), (x, scale, pre_bias, mean, lax.rsqrt(var + epsilon))


def _backward(activation, axis, epsilon, groups, residuals, grads):
  del epsilon  # already in inverse_std
  x, scale, pre_bias, mean, inverse_std = residuals
  y_grad, mean_grad, var_grad = grads
  y_grad = y_grad.astype(jnp.float32)
  count = _count(x, axis, groups)
  activated, derivative = functions(activation, x)[1](_biased(x, pre_bias, axis))
  bias_grad = _channel_sum(y_grad, axis, groups)
  product = _channel_sum(y_grad * activated, axis, groups)
  scale_grad = inverse_std * (product - mean * bias_grad)
  # The gradient of the activation is linear in y_grad and the activation, with per-channel
  # coefficients.
  slope = jnp.broadcast_to(scale, mean.shape) * inverse_std
  activated_slope = (2 * var_grad - slope * inverse_std * scale_grad) / count
  offset = (mean_grad - slope * bias_grad) / count - activated_slope * mean
  slope, activated_slope, offset = (
    _along(vector, axis, x, groups) for vector in (slope, activated_slope, offset)
  )
  x_grad = (slope * y_grad + activated_slope * activated + offset) * derivative
  pre_bias_grad = _channel_sum(x_grad, axis, groups)
  vectors = (scale_grad, bias_grad, pre_bias_grad)
  return x_grad.astype(x.dtype), *(v.sum(0) if groups else v for v in vectors)


_act_norm_with_gradient = gradients.own_gradient(_act_norm, _forward, _backward, arrays=4)


def _biased(x: jax.Array, pre_bias: jax.Array, axis: int) -> jax.Array:
  return x.astype(jnp.float32) + _along(pre_bias, axis, x)


def _count(x: jax.Array, axis: int, groups: Groups | None) -> int:
  """Number of elements per channel, or per channel and group."""
  count = x.size // x.shape[axis]
  return count * groups.size // x.shape[groups.batch_axis] if groups else count


def _channel_sum(x: jax.Array, axis: int, groups: Groups | None = None) -> jax.Array:
  """The sum of each channel: [channels], or [groups, channels]."""
  kept = (axis,) if groups is None else (axis, groups.batch_axis)
  total = x.sum([a for a in range(x.ndim) if a not in kept])
  if groups is None:
    return total
  letters = "cb" if axis < groups.batch_axis else "bc"
  return _einsum(f"gb,{letters}->gc", _membership(x, groups), total)


def _along(vector: jax.Array, axis: int, x: jax.Array, groups: Groups | None = None) -> jax.Array:
  """Expands [channels], or the shape of `_channel_sum`, to the rank of `x`."""
  if vector.ndim == 1 or groups is None:
    return lax.expand_dims(vector, [a for a in range(x.ndim) if a != axis])
  letters = "cb" if axis < groups.batch_axis else "bc"
  of_image = _einsum(f"gb,gc->{letters}", _membership(x, groups), vector)
  kept = (axis, groups.batch_axis)
  return lax.expand_dims(of_image, [a for a in range(x.ndim) if a not in kept])


def _membership(x: jax.Array, groups: Groups) -> jax.Array:
  """Float32 [groups, images]: 1 where the image belongs to the group."""
  shape = (x.shape[groups.batch_axis] // groups.size, x.shape[groups.batch_axis])
  group, image = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
  return (image // groups.size == group).astype(jnp.float32)


def _einsum(text: str, *arrays: jax.Array) -> jax.Array:
  return jnp.einsum(text, *arrays, precision=lax.Precision.HIGHEST)


def _normalized(
  activated: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  mean: jax.Array,
  inverse_std: jax.Array,
  axis: int,
  groups: Groups | None = None,
) -> jax.Array:
  scale, bias = (jnp.broadcast_to(vector, mean.shape) for vector in (scale, bias))
  slope = scale * inverse_std
  offset = _along(bias - mean * slope, axis, activated, groups)
  return activated * _along(slope, axis, activated, groups) + offset
