"""The Pallas kernels, interpreted on CPU and lowered for GPU without one."""

import functools
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.depthwise import depthwise_conv, pallas_gpu
from tests.depthwise_reference import reference

pallas_conv = functools.partial(depthwise_conv, implementation="pallas")
pallas_conv_cbhw = functools.partial(depthwise_conv, implementation="pallas", order="cbhw")
TOLERANCE = 1e-2

# (batch, height, width, channels), (kernel height, kernel width)
SHAPES = [
  ((2, 8, 8, 3), (3, 3)),
  ((1, 9, 12, 1), (4, 4)),  # one channel, even kernel
  ((3, 14, 8, 33), (5, 5)),  # one channel more than a block
  ((1, 33, 17, 2), (9, 9)),  # one row and one column more than a tile
  ((1, 10, 9, 5), (8, 3)),
  ((2, 8, 10, 2), (15, 15)),  # a kernel larger than the feature map
]

H200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")


def lower_for_gpu(jitted, mesh, *args):
  """StableHLO with the kernels as custom calls; needs no GPU."""
  with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(mesh):
    warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
    return jitted.trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def random(shape, dtype, seed):
  return jnp.asarray(np.random.RandomState(seed).randn(*shape), dtype)


def assert_close(actual, desired, tolerance=TOLERANCE):
  """Compares relative to the norm of the whole array."""
  error = np.linalg.norm(np.asarray(actual, np.float64) - desired) / np.linalg.norm(desired)
  assert error <= tolerance, error


@pytest.mark.parametrize(("shape", "kernel_size"), SHAPES)
def test_output_and_gradients(shape, kernel_size):
  x, g = random(shape, "bfloat16", 0), random(shape, "bfloat16", 1)
  kernel = random((*kernel_size, shape[-1]), "bfloat16", 2)

  @jax.jit
  def run(x, kernel, g):
    y, vjp = jax.vjp(pallas_conv, x, kernel)
    return y, *vjp(g)

  for actual, desired in zip(run(x, kernel, g), reference(x, kernel, g), strict=True):
    assert actual.dtype == "bfloat16"
    assert_close(actual, desired)


@pytest.mark.parametrize(
  ("shape", "kernel_size"), [((2, 9, 12, 3), (4, 5)), ((5, 8, 17, 1), (9, 2))]
)
def test_channel_major(shape, kernel_size):
  x, g = random(shape, "bfloat16", 0), random(shape, "bfloat16", 1)
  kernel = random((*kernel_size, shape[-1]), "bfloat16", 2)

  @jax.jit
  def run(x, kernel, g):
    y, vjp = jax.vjp(pallas_conv_cbhw, x.transpose(3, 0, 1, 2), kernel)
    x_grad, kernel_grad = vjp(g.transpose(3, 0, 1, 2))
    return y.transpose(1, 2, 3, 0), x_grad.transpose(1, 2, 3, 0), kernel_grad

  for actual, desired in zip(run(x, kernel, g), reference(x, kernel, g), strict=True):
    assert actual.dtype == "bfloat16"
    assert_close(actual, desired)


def test_kernel_of_another_dtype():
  x, kernel = random((1, 8, 8, 2), "bfloat16", 0), random((3, 3, 2), "float32", 1)
  y, vjp = jax.vjp(pallas_conv, x, kernel)
  assert y.dtype == "bfloat16"
  assert [a.dtype for a in vjp(y)] == ["bfloat16", "float32"]
  assert_close(y, reference(x, kernel, x)[0])


def test_vmap():
  x, kernel = random((2, 1, 8, 8, 2), "bfloat16", 0), random((3, 3, 2), "bfloat16", 1)
  y = jax.vmap(pallas_conv, (0, None))(x, kernel)
  assert_close(y[:, 0], reference(x[:, 0], kernel, x[:, 0])[0])


def sharded(mesh, check_vma):
  data, copy = jax.P("data"), jax.P()

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(data, copy),
    out_specs=(data, data, copy),
    check_vma=check_vma,
  )
  def run(x, kernel):
    y, vjp = jax.vjp(pallas_conv, x, kernel)
    x_grad, kernel_grad = vjp(x)
    return y, x_grad, kernel_grad if check_vma else jax.lax.psum(kernel_grad, "data")

  return run


def test_shard_map():
  x, kernel = random((4, 8, 8, 2), "bfloat16", 0), random((3, 3, 2), "bfloat16", 1)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  # JAX cannot interpret a kernel with a loop under check_vma.
  actual = sharded(mesh, check_vma=False)(x, kernel)
  for a, desired in zip(actual, reference(x, kernel, x), strict=True):
    assert_close(a, desired)


def test_shard_map_lowers_for_a_gpu():
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types, abstract_device=H200)
  x = jax.ShapeDtypeStruct((4, 8, 8, 2), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((3, 3, 2), jnp.bfloat16)
  text = lower_for_gpu(sharded(mesh, check_vma=True), mesh, x, kernel)
  assert text.count("xla.gpu.triton") == 3


@pytest.mark.parametrize(
  ("shape", "dtype"),
  [((1, 7, 8, 2), "bfloat16"), ((1, 8, 65, 2), "bfloat16"), ((1, 8, 8, 2), "float32")],
)
def test_unsupported_maps_fall_back_with_one_log_line(shape, dtype, caplog):
  pallas_gpu._log_fallback.cache_clear()
  x, kernel = random(shape, dtype, 0), random((3, 3, 2), dtype, 1)
  with caplog.at_level(logging.INFO, pallas_gpu.__name__):
    for _ in range(2):
      y, vjp = jax.vjp(pallas_conv, x, kernel)
      vjp(y)
  assert len(caplog.records) == 1
  assert_close(y, reference(x, kernel, x)[0], 1e-5 if dtype == "float32" else TOLERANCE)


def test_symbolic_batch_falls_back():
  (batch,) = jax.export.symbolic_shape("b")
  x = jax.ShapeDtypeStruct((batch, 8, 8, 2), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((3, 3, 2), jnp.bfloat16)
  exported = jax.export.export(jax.jit(pallas_conv))(x, kernel)
  x, kernel = random((3, 8, 8, 2), "bfloat16", 0), random((3, 3, 2), "bfloat16", 1)
  assert_close(exported.call(x, kernel), reference(x, kernel, x)[0])


@pytest.mark.parametrize(
  ("shape", "kernel_size"),
  [SHAPES[1], SHAPES[4], ((2, 32, 32, 64), (9, 9)), ((1, 64, 8, 1), (3, 15))],
)
def test_lowers_for_a_gpu(shape, kernel_size):
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((*kernel_size, shape[-1]), jnp.bfloat16)

  def run(x, kernel):
    y, vjp = jax.vjp(pallas_conv, x, kernel)
    y_cbhw, vjp_cbhw = jax.vjp(pallas_conv_cbhw, x.transpose(3, 0, 1, 2), kernel)
    return vjp(y), vjp_cbhw(y_cbhw)

  mesh = jax.sharding.AbstractMesh((), (), abstract_device=H200)
  text = lower_for_gpu(jax.jit(run), mesh, x, kernel)
  assert text.count("xla.gpu.triton") == 6
  assert "stablehlo.convolution" not in text
