"""The Pallas kernels, interpreted on CPU and lowered for a GPU that need not be there."""

import functools
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.depthwise import depthwise_conv, depthwise_conv_cbhw, pallas_gpu
from tests.depthwise_reference import reference

pallas_conv = functools.partial(depthwise_conv, implementation="pallas")
pallas_conv_cbhw = functools.partial(depthwise_conv_cbhw, implementation="pallas")
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}

# (batch, height, width, channels), (kernel height, kernel width)
SHAPES = [
  ((2, 8, 8, 3), (3, 3)),
  ((1, 9, 12, 1), (4, 4)),  # one channel, even kernel
  ((3, 14, 8, 33), (5, 5)),  # one channel more than a block
  ((1, 33, 17, 2), (9, 9)),  # one row and one column more than a tile
  ((1, 10, 9, 5), (8, 3)),
  ((2, 8, 10, 2), (15, 15)),  # a kernel larger than the map
]

H200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")


def lower_for_gpu(jitted, mesh, *args):
  """StableHLO with the kernels as custom calls; no GPU is needed."""
  with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(mesh):
    warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
    return jitted.trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def random(shape, dtype, seed):
  return jnp.asarray(np.random.RandomState(seed).randn(*shape), dtype)


def assert_close(actual, desired, dtype):
  """Relative to the norm, as a whole."""
  error = np.linalg.norm(np.asarray(actual, np.float64) - desired) / np.linalg.norm(desired)
  assert error <= TOLERANCES[dtype], error


@pytest.mark.parametrize(
  ("shape", "kernel_size", "dtype"),
  [(*case, "float32") for case in SHAPES] + [(*case, "bfloat16") for case in SHAPES[:3]],
)
def test_output_and_gradients(shape, kernel_size, dtype):
  x, g = random(shape, dtype, 0), random(shape, dtype, 1)
  kernel = random((*kernel_size, shape[-1]), dtype, 2)

  @jax.jit
  def run(x, kernel, g):
    y, vjp = jax.vjp(pallas_conv, x, kernel)
    return y, *vjp(g)

  for actual, desired in zip(run(x, kernel, g), reference(x, kernel, g), strict=True):
    assert actual.dtype == dtype
    assert_close(actual, desired, dtype)


def test_batch_is_cut_into_shares():
  x, g = random((4, 8, 8, 3), "float32", 0), random((4, 8, 8, 3), "float32", 1)
  blocks = pallas_gpu.Blocks(3, 4, 2, 1, kernel_columns=2, programs=8)
  actual = pallas_gpu.kernel_gradient(x, g, (3, 3), blocks=blocks, interpret=True)
  assert_close(actual, reference(x, jnp.zeros((3, 3, 3)), g)[2], "float32")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
  ("shape", "kernel_size"), [((2, 9, 12, 3), (4, 5)), ((5, 8, 17, 1), (9, 2))]
)
def test_channel_major(shape, kernel_size, dtype):
  x, g = random(shape, dtype, 0), random(shape, dtype, 1)
  kernel = random((*kernel_size, shape[-1]), dtype, 2)

  @jax.jit
  def run(x, kernel, g):
    y, vjp = jax.vjp(pallas_conv_cbhw, x.transpose(3, 0, 1, 2), kernel)
    x_grad, kernel_grad = vjp(g.transpose(3, 0, 1, 2))
    return y.transpose(1, 2, 3, 0), x_grad.transpose(1, 2, 3, 0), kernel_grad

  for actual, desired in zip(run(x, kernel, g), reference(x, kernel, g), strict=True):
    assert actual.dtype == dtype
    assert_close(actual, desired, dtype)


def test_kernel_of_another_dtype():
  x, kernel = random((1, 8, 8, 2), "bfloat16", 0), random((3, 3, 2), "float32", 1)
  y, vjp = jax.vjp(pallas_conv, x, kernel)
  assert y.dtype == "bfloat16"
  assert [a.dtype for a in vjp(y)] == ["bfloat16", "float32"]
  assert_close(y, reference(x, kernel, x)[0], "bfloat16")


def test_vmap():
  x, kernel = random((2, 1, 8, 8, 2), "float32", 0), random((3, 3, 2), "float32", 1)
  y = jax.vmap(pallas_conv, (0, None))(x, kernel)
  assert_close(y[:, 0], reference(x[:, 0], kernel, x[:, 0])[0], "float32")


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
  x, kernel = random((4, 8, 8, 2), "float32", 0), random((3, 3, 2), "float32", 1)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  # JAX cannot interpret a kernel with a loop under check_vma.
  actual = sharded(mesh, check_vma=False)(x, kernel)
  for a, desired in zip(actual, reference(x, kernel, x), strict=True):
    assert_close(a, desired, "float32")


def test_shard_map_lowers_for_a_gpu():
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types, abstract_device=H200)
  x = jax.ShapeDtypeStruct((4, 8, 8, 2), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 2), jnp.float32)
  text = lower_for_gpu(sharded(mesh, check_vma=True), mesh, x, kernel)
  assert text.count("xla.gpu.triton") == 3


@pytest.mark.parametrize("shape", [(1, 7, 8, 2), (1, 8, 65, 2)])
def test_unsupported_shapes_fall_back_with_one_log_line(shape, caplog):
  pallas_gpu._log_fallback.cache_clear()
  x, kernel = random(shape, "float32", 0), random((3, 3, 2), "float32", 1)
  with caplog.at_level(logging.INFO, pallas_gpu.__name__):
    for _ in range(2):
      y, vjp = jax.vjp(pallas_conv, x, kernel)
      vjp(y)
  assert len(caplog.records) == 1
  assert_close(y, reference(x, kernel, x)[0], "float32")


def test_symbolic_batch_falls_back():
  (batch,) = jax.export.symbolic_shape("b")
  x = jax.ShapeDtypeStruct((batch, 8, 8, 2), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 2), jnp.float32)
  exported = jax.export.export(jax.jit(pallas_conv))(x, kernel)
  x, kernel = random((3, 8, 8, 2), "float32", 0), random((3, 3, 2), "float32", 1)
  assert_close(exported.call(x, kernel), reference(x, kernel, x)[0], "float32")


@pytest.mark.parametrize(
  ("shape", "dtype", "activation"),
  [
    ((2, 9, 12, 3), "float32", "gelu"),
    ((2, 9, 12, 3), "bfloat16", "relu"),
    ((1, 7, 8, 3), "bfloat16", "gelu"),  # falls back
  ],
)
def test_forward_with_statistics(shape, dtype, activation):
  x, kernel, bias = random(shape, dtype, 0), random((3, 3, 3), dtype, 1), random((3,), dtype, 2)
  run = jax.jit(pallas_gpu.forward_with_statistics, static_argnums=3)
  y, total_c, square_c = run(x, kernel, bias, activation)
  desired = reference(x, kernel, x)[0] + np.asarray(bias, np.float64)
  assert y.dtype == dtype
  assert_close(y, desired, dtype)
  y = y.astype(jnp.float32)
  a = jax.nn.gelu(y, approximate=False) if activation == "gelu" else jax.nn.relu(y)
  assert total_c.dtype == square_c.dtype == "float32"
  assert_close(total_c, np.asarray(a, np.float64).sum((0, 1, 2)), "float32")
  assert_close(square_c, np.square(a, dtype=np.float64).sum((0, 1, 2)), "float32")


def test_unknown_activation():
  x = jnp.zeros((1, 8, 8, 1))
  with pytest.raises(ValueError, match="one of \\['gelu', 'relu'\\], got 'tanh'"):
    pallas_gpu.forward_with_statistics(x, jnp.zeros((3, 3, 1)), jnp.zeros(1), "tanh")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
  ("shape", "kernel_size"),
  [SHAPES[1], SHAPES[4], ((2, 32, 32, 64), (9, 9)), ((1, 64, 8, 1), (3, 15))],
)
def test_lowers_for_a_gpu(shape, kernel_size, dtype):
  x = jax.ShapeDtypeStruct(shape, dtype)
  kernel = jax.ShapeDtypeStruct((*kernel_size, shape[-1]), dtype)
  bias = jax.ShapeDtypeStruct(shape[-1:], dtype)

  def run(x, kernel, bias):
    y, vjp = jax.vjp(pallas_conv, x, kernel)
    y_cbhw, vjp_cbhw = jax.vjp(pallas_conv_cbhw, x.transpose(3, 0, 1, 2), kernel)
    fused = pallas_gpu.forward_with_statistics(x, kernel, bias, "gelu")
    return vjp(y), vjp_cbhw(y_cbhw), fused

  mesh = jax.sharding.AbstractMesh((), (), abstract_device=H200)
  text = lower_for_gpu(jax.jit(run), mesh, x, kernel, bias)
  assert text.count("xla.gpu.triton") == 7
  assert "stablehlo.convolution" not in text
