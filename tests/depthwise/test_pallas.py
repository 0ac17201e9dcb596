"""Our Pallas kernels as one implementation: the choice by platform, and what falls back to XLA."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.depthwise import depthwise_conv, orders, pallas, pallas_tpu
from tests.depthwise.test_depthwise import assert_close, random_case, value_and_grads
from tests.depthwise_reference import reference

conv = functools.partial(depthwise_conv, implementation="pallas")


def in_order(order, grid):
  """The convolution in another order, applied to (b, h, w, c) feature maps."""

  def call(x, kernel):
    to = functools.partial(orders.reorder, grid=grid)
    y = conv(to(x, "bhwc", order), kernel, order=order, grid=grid)
    return to(y, order, "bhwc")

  return call


def test_lowering_traces_the_kernels_of_one_platform(monkeypatch):
  monkeypatch.setattr(pallas_tpu, "correlate", None)  # fails if it is called
  x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 4), jnp.float32)
  traced = jax.jit(conv).trace(x, kernel)
  assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
  with pytest.raises(TypeError, match="not callable"):
    traced.lower(lowering_platforms=("cpu",))


def test_lowers_for_a_tpu():
  x = jax.ShapeDtypeStruct((16, 32, 32, 8), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((9, 9, 8), jnp.float32)
  lowered = jax.jit(functools.partial(value_and_grads, conv)).trace(x, kernel, x)
  text = lowered.lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("tpu_custom_call") == 3
  assert "stablehlo.convolution" not in text


@pytest.mark.parametrize("order", ["cbhw", "cbp", "bpc"])
def test_merged_positions(order):
  case = random_case((2, 5, 6, 3, 4, 3))
  got = jax.jit(functools.partial(value_and_grads, in_order(order, (5, 6))))(*case)
  assert_close(got, reference(*case), 1e-5)


@pytest.mark.parametrize("grid", [None, (5, 5)])
def test_merged_positions_need_their_grid(grid):
  with pytest.raises(ValueError, match="grid must be the height and width of x_cbp"):
    conv(jnp.ones((3, 2, 30)), jnp.ones((3, 3, 3)), order="cbp", grid=grid)


def test_vmap():
  cases = [random_case((2, 5, 6, 3, 4, 3), seed=seed) for seed in range(2)]
  call = functools.partial(value_and_grads, conv)
  got = jax.jit(jax.vmap(call))(*(jnp.stack(a) for a in zip(*cases, strict=True)))
  for n, case in enumerate(cases):
    assert_close([a[n] for a in got], reference(*case), 1e-5)


def test_eight_devices_give_the_numbers_of_one():
  x, kernel, g = random_case((16, 5, 6, 3, 3, 3))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  data, copy = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
  case = jax.device_put((x, kernel, g), (data, copy, data))
  got = jax.jit(functools.partial(value_and_grads, functools.partial(conv, mesh=mesh)))(*case)
  assert_close(got, reference(x, kernel, g), 1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 4097, 2, 3, 3), (1, 4, 4, 2, 16, 3)])
def test_unsupported_maps_fall_back_with_one_log_line(shape, caplog):
  pallas._log_fallback.cache_clear()
  case = random_case(shape)
  with caplog.at_level(logging.INFO, pallas.__name__):
    got = jax.jit(functools.partial(value_and_grads, conv))(*case)
  (message,) = [record.getMessage() for record in caplog.records if record.name == pallas.__name__]
  assert message.endswith("float32 on cpu; using xla instead")
  assert_close(got, reference(*case), 1e-5)


def test_a_symbolic_batch_falls_back():
  (batch,) = jax.export.symbolic_shape("b")
  x = jax.ShapeDtypeStruct((batch, 8, 8, 2), jnp.float32)
  case = random_case((3, 8, 8, 2, 3, 3))
  exported = jax.export.export(jax.jit(conv))(x, case[1])
  np.testing.assert_allclose(exported.call(*case[:2]), reference(*case)[0], rtol=1e-4, atol=1e-5)
