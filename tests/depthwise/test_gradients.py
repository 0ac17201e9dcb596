"""Custom gradients under forward mode and `shard_map`."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from convmixer_jax.depthwise.gradients import own_gradient


def _product(x, y, factor):
  return x * y * factor


# Three times the true gradient, to detect whether the rule is used.
product = own_gradient(
  _product,
  lambda x, y, factor: (_product(x, y, factor), (x, y)),
  lambda factor, kept, grad: (3 * factor * grad * kept[1], 3 * factor * grad * kept[0]),
  arrays=2,
)
X = np.arange(8, dtype=np.float32)


def loss(x):
  return product(x, x + 1, 2.0).sum()


@pytest.mark.parametrize(
  "wrap",
  [
    lambda f: f,
    jax.jit,
    jax.checkpoint,
    lambda f: lambda x: jax.vmap(f)(x[None]).sum(),
    lambda f: lambda x: jax.lax.scan(lambda _, x: (f(x), None), 0.0, x[None])[0],
  ],
  ids=["plain", "jit", "checkpoint", "vmap", "scan"],
)
def test_the_rule_is_used_and_forward_mode_says_what_to_do(wrap):
  np.testing.assert_allclose(jax.jit(jax.grad(wrap(loss)))(X), 6 * (2 * X + 1))
  for forward in (
    lambda: jax.jvp(wrap(loss), (X,), (X,)),
    lambda: jax.jit(lambda x: jax.jvp(wrap(loss), (x,), (x,)))(X),
    lambda: jax.linearize(wrap(loss), X)[1](X),
  ):
    with pytest.raises(TypeError, match=r'forward-mode .* build the model with depthwise="xla"'):
      forward()


def test_jacfwd_says_what_to_do():
  with pytest.raises(TypeError, match='build the model with depthwise="xla"'):
    jax.jacfwd(loss)(X)


def test_what_shards_have_in_common_gets_the_sum_of_their_gradients():
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def gradient(x, y):
    return jax.grad(lambda y: jax.lax.psum(product(x, y[None], 2.0).sum(), "data"))(y)

  sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
  x, y = X.reshape(4, 2), np.float32([1, 2])
  np.testing.assert_allclose(jax.jit(sharded)(x, y), 6 * x.sum(0))
