"""The Pallas kernels for TPUs, interpreted on CPU; `test_tpu_compiler.py` compiles them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.depthwise import pallas_tpu
from tests.depthwise_reference import reference

# The worst error relative to the largest element: of float32 by its arithmetic, of the maps in
# bfloat16 by their rounding to it.
TOLERANCES = {"float32": (1e-6, 1e-6, 1e-6), "bfloat16": (4e-3, 4e-3, 1e-6)}

# batch, height, width, channels, kernel rows, kernel columns
SHAPES = [
  (2, 8, 8, 3, 3, 3),
  (3, 7, 7, 2, 9, 9),  # a kernel wider than the map: taps share diagonals
  pytest.param((2, 14, 14, 2, 7, 8), marks=pytest.mark.slow),  # a width that does not divide 128
]
MORE_SHAPES = [
  *((1, 32, 32, 1, k, k) for k in (2, 8, 9, 15)),
  (2, 56, 56, 1, 9, 9),
  (2, 7, 7, 2, 15, 15),
  (1, 28, 28, 1, 5, 4),
  (2, 9, 40, 1, 15, 2),
  (2, 40, 5, 2, 3, 15),
  (2, 3, 2, 1, 7, 7),
  (1, 1, 1, 2, 6, 1),
  (1, 64, 64, 1, 15, 15),
  (300, 4, 4, 5, 3, 3),
]


def errors(shape, dtype):
  """The largest error of the map and of both gradients, relative to the largest element."""
  batch, height, width, channels, rows, columns = shape
  rng = np.random.default_rng(0)
  sizes = ((batch, height, width, channels), (rows, columns, channels))
  x, kernel, g = (jnp.asarray(rng.standard_normal(sizes[n]), dtype) for n in (0, 1, 0))

  @jax.jit
  def run(x, kernel, g):
    x, g = (a.transpose(3, 0, 1, 2) for a in (x, g))
    y = pallas_tpu.forward(x, kernel, interpret=True)
    x_grad, kernel_grad = pallas_tpu.backward(x, kernel.astype("float32"), g, interpret=True)
    return y.transpose(1, 2, 3, 0), x_grad.transpose(1, 2, 3, 0), kernel_grad

  return [
    np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
    for got, want in zip(run(x, kernel, g), reference(x, kernel, g), strict=True)
  ]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
  "shape", [*SHAPES, *(pytest.param(s, marks=pytest.mark.slow) for s in MORE_SHAPES)], ids=str
)
def test_maps_and_gradients_are_the_references(shape, dtype):
  found = errors(shape, dtype)
  assert all(error <= most for error, most in zip(found, TOLERANCES[dtype], strict=True)), found


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_parts_of_the_batch_add_up(dtype, monkeypatch):
  """The batch is cut into parts of 16 images, the last of them with 5."""
  monkeypatch.setattr(pallas_tpu, "_BLOCK_BYTES", 1)
  found = errors((37, 4, 4, 2, 3, 3), dtype)
  assert all(error <= most for error, most in zip(found, TOLERANCES[dtype], strict=True)), found


def test_the_interpreted_roll_is_the_one_of_the_device():
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import tpu as pltpu

  def kernel(x_ref, y_ref):
    y_ref[...] = pltpu.roll(x_ref[...], 0, 1, stride=1, stride_axis=0)

  x = jnp.arange(8 * 128.0).reshape(8, 128)
  rolled = pl.pallas_call(kernel, jax.typeof(x), interpret=True)(x)
  np.testing.assert_array_equal(pallas_tpu._interpreted_roll(x, 1), rolled)
  in_steps = jnp.concatenate([x[:4], jnp.roll(x[4:], -4, 1)])
  np.testing.assert_array_equal(pallas_tpu._interpreted_roll(x, -1, 4), in_steps)
