"""The Pallas kernels for GPUs, interpreted on CPU and lowered for GPU without one."""

import functools
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


@pytest.mark.parametrize(
  ("shape", "kernel_size", "kernel_dtype"),
  [*((*case, "bfloat16") for case in SHAPES), (*SHAPES[1], "float32")],
)
def test_output_and_gradients(shape, kernel_size, kernel_dtype):
  x, g = random(shape, "bfloat16", 0), random(shape, "bfloat16", 1)
  kernel = random((*kernel_size, shape[-1]), "bfloat16", 2)

  @jax.jit
  def run(x, kernel, g):
    x, g = (a.transpose(3, 0, 1, 2) for a in (x, g))
    y = pallas_gpu.forward(x, kernel, interpret=True)
    x_grad, kernel_grad = pallas_gpu.backward(x, kernel, g, interpret=True)
    return y.transpose(1, 2, 3, 0), x_grad.transpose(1, 2, 3, 0), kernel_grad

  found = run(x, kernel.astype(kernel_dtype), g)
  assert [a.dtype for a in found] == ["bfloat16", "bfloat16", kernel_dtype]
  for actual, desired in zip(found, reference(x, kernel, g), strict=True):
    assert_close(actual, desired)


def sharded(mesh):
  data, copy = jax.P("data"), jax.P()

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(data, copy),
    out_specs=(data, data, copy),
  )
  def run(x, kernel):
    y, vjp = jax.vjp(pallas_conv, x, kernel)
    x_grad, kernel_grad = vjp(x)
    return y, x_grad, kernel_grad

  return run


def test_shard_map_lowers_for_a_gpu():
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types, abstract_device=H200)
  x = jax.ShapeDtypeStruct((4, 8, 8, 2), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((3, 3, 2), jnp.bfloat16)
  text = lower_for_gpu(sharded(mesh), mesh, x, kernel)
  assert text.count("xla.gpu.triton") == 3


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
