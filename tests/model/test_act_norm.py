import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.model.act_norm import ACTIVATIONS, Groups, act_affine, act_norm, functions
from convmixer_jax.parallel import sharding

EPSILON = 1e-5


def plain(x, activation, scale, bias, pre_bias, axis):
  """Two-pass statistics, differentiated by autodiff."""
  axes = [a for a in range(x.ndim) if a != axis % x.ndim]
  function = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
  }[activation]
  activated = function(x + jnp.expand_dims(pre_bias, axes))
  mean, var = activated.mean(axes), activated.var(axes)
  centred = activated - jnp.expand_dims(mean, axes)
  slope = jnp.expand_dims(scale / jnp.sqrt(var + EPSILON), axes)
  return centred * slope + jnp.expand_dims(bias, axes), mean, var


def case(axis, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  shape = (6, 5, 7, 3) if axis == -1 else (3, 6, 5, 7)
  x = jnp.asarray(rng.standard_normal(shape), dtype)
  return x, *(jnp.asarray(rng.standard_normal(3), jnp.float32) for _ in range(3))


def float64(*arrays):
  return tuple(jnp.asarray(np.float64(a)) for a in arrays)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("axis", [-1, 0])
def test_value_and_gradients(axis, activation):
  x, *vectors = case(axis)
  rng = np.random.default_rng(1)
  grads = tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (x.shape, 3, 3))

  def ours(x, scale, bias, pre_bias):
    return act_norm(
      x, activation, scale, bias, channel_axis=axis, pre_bias=pre_bias, epsilon=EPSILON
    )

  def theirs(x, *vectors):
    return plain(x, activation, *vectors, axis)

  got, got_vjp = jax.vjp(ours, x, *vectors)
  with jax.enable_x64(True):
    want, want_vjp = jax.vjp(theirs, *float64(x, *vectors))
    want_grads = want_vjp(float64(*grads))
  for a, b in zip((*got, *got_vjp(grads)), (*want, *want_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [None, Groups(0, 2)])
def test_derivatives_left_to_jax_are_the_own_gradient_and_forward_mode(groups, activation):
  x, scale, bias, pre_bias = case(-1)
  x = x.at[0, 0].set(-jnp.broadcast_to(pre_bias, (7, 3)))  # ReLU's kink, where the slope is 0
  arguments = x, scale, bias, pre_bias

  def norm(own_gradient, x, scale, bias, pre_bias):
    y, mean, var = act_norm(
      x,
      activation,
      scale,
      bias,
      channel_axis=-1,
      pre_bias=pre_bias,
      groups=groups,
      own_gradient=own_gradient,
    )
    return jnp.sin(y).sum() + jnp.sin(mean).sum() + jnp.sin(var).sum()

  own, jaxs = (
    jax.grad(functools.partial(norm, own_gradient), (0, 1, 2, 3))(*arguments)
    for own_gradient in (True, False)
  )
  tangents = tuple(jnp.cos(a) for a in arguments)
  _, slope = jax.jvp(functools.partial(norm, False), arguments, tangents)
  for a, b in zip(own, jaxs, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(slope, sum(map(jnp.vdot, own, tangents)), rtol=1e-4)


@pytest.mark.parametrize(("shift", "tolerance"), [(0, 1e-6), (10, 1e-4), (-3, 1e-5)])
def test_one_pass_variance_is_accurate(shift, tolerance):
  """E[a*a] - E[a]^2 loses a factor of mean^2 / variance: 100 if the mean is ten deviations."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((16384, 2)) + shift, jnp.float32)
  one, zero = jnp.ones(2), jnp.zeros(2)
  _, mean, var = act_norm(x, "gelu", one, zero, channel_axis=-1)
  with jax.enable_x64(True):
    _, want_mean, want_var = plain(*float64(x), "gelu", one, zero, zero, -1)
  np.testing.assert_allclose(mean, want_mean, rtol=1e-6)
  np.testing.assert_allclose(var, want_var, rtol=tolerance)


def test_a_constant_channel_stays_finite():
  x = jnp.full((64, 2), 3.3)
  one, zero = jnp.ones(2), jnp.zeros(2)
  grad = jax.grad(lambda x: act_norm(x, "gelu", one, zero, channel_axis=-1)[0].sum())(x)
  assert np.isfinite(grad).all()


def test_bfloat16_keeps_its_dtype_and_float32_statistics():
  x, scale, bias, pre_bias = case(-1, jnp.bfloat16)
  y, mean, var = act_norm(x, "gelu", scale, bias, channel_axis=-1, pre_bias=pre_bias)
  assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
  want = plain(x.astype(jnp.float32), "gelu", scale, bias, pre_bias, -1)[0]
  np.testing.assert_allclose(np.float32(y), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("own_gradient", [True, False])
def test_gelu_of_all_bfloat16_values_and_its_derivative_are_exact_to_1e_5(own_gradient):
  x = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
  exact = np.float64(x[np.abs(x) < np.inf])
  cdf = np.vectorize(math.erfc)(-exact / math.sqrt(2)) / 2
  want = exact * cdf
  want_slope = cdf + exact * np.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)

  @jax.jit
  def results(x):
    value, with_slope = functions("gelu", x)
    x = x.astype(jnp.float32)
    if own_gradient:
      return value(x), *with_slope(x)
    return value(x), *jax.vmap(jax.value_and_grad(value))(x)

  value, same, slope = results(jnp.asarray(exact, jnp.bfloat16))
  for got in (value, same):
    assert (np.abs(got - want) <= 1e-5 * np.maximum(np.abs(exact), 1)).all()
  np.testing.assert_allclose(slope, want_slope, rtol=0, atol=1e-5)


def test_erf_is_replaced_in_bfloat16_alone():
  def program(dtype):
    x, *vectors = case(-1, dtype)
    return str(jax.make_jaxpr(lambda x: act_norm(x, "gelu", *vectors[:2], channel_axis=-1))(x))

  assert " erf " in program(jnp.float32)
  assert " erf " not in program(jnp.bfloat16)
  assert " tanh " in program(jnp.bfloat16)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_affine_equals_training_with_the_same_statistics(activation):
  x, scale, bias, pre_bias = case(0)
  settings = {"channel_axis": 0, "pre_bias": pre_bias}
  y, mean, var = act_norm(x, activation, scale, bias, **settings)
  got = act_affine(x, activation, scale, bias, mean, var, **settings)
  np.testing.assert_allclose(got, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [-1, 0])
def test_groups_are_as_if_each_were_alone(axis):
  x, *vectors = case(axis)
  batch_axis = 0 if axis else 1
  rng = np.random.default_rng(1)
  grads = tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (x.shape, (3, 3), (3, 3)))

  def together(x, scale, bias, pre_bias):
    groups = Groups(batch_axis, 2)
    return act_norm(x, "gelu", scale, bias, channel_axis=axis, pre_bias=pre_bias, groups=groups)

  def alone(x, scale, bias, pre_bias):
    parts = [
      act_norm(part, "gelu", scale, bias, channel_axis=axis, pre_bias=pre_bias)
      for part in jnp.split(x, 3, axis=batch_axis)
    ]
    maps, means, variances = zip(*parts, strict=True)
    return jnp.concatenate(maps, batch_axis), jnp.stack(means), jnp.stack(variances)

  got, got_vjp = jax.vjp(together, x, *vectors)
  want, want_vjp = jax.vjp(alone, x, *vectors)
  for a, b in zip((*got, *got_vjp(grads)), (*want, *want_vjp(grads)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_sharded_statistics_span_the_global_batch():
  x, scale, bias, _ = case(-1)
  x = jnp.concatenate([x, 2 * x, x + 1, -x])  # 24 different feature maps over 8 devices
  sharded = jax.device_put(x, sharding.batch_sharding(sharding.make_mesh()))
  call = jax.jit(lambda x: act_norm(x, "gelu", scale, bias, channel_axis=-1))
  for got, want in zip(call(sharded), call(x), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_bad_input_names_the_argument():
  x, two, three = jnp.ones((2, 3)), jnp.ones(2), jnp.ones(3)
  with pytest.raises(ValueError, match=r"scale has shape \(2,\); it must be \(3,\)"):
    act_norm(x, "gelu", two, three, channel_axis=-1)
  with pytest.raises(ValueError, match="channel_axis is 2, not an axis of x"):
    act_norm(x, "gelu", three, three, channel_axis=2)
  with pytest.raises(ValueError, match="'elu'; allowed: gelu, gelu_tanh, relu"):
    act_norm(x, "elu", three, three, channel_axis=1)
