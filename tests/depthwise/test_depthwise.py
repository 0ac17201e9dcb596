"""Tests every implementation and layout against a float64 NumPy reference."""

from functools import partial
import os
import shlex
import shutil

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from convmixer_jax.depthwise import depthwise_conv
from tests.depthwise_reference import reference

needs_compiler = pytest.mark.skipif(
  shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]) is None,
  reason="implementation='native' needs a C++ compiler",
)
IMPLEMENTATIONS = (None, "taps", "xla", "banded", pytest.param("native", marks=needs_compiler))
# batch, height, width, channels, kernel rows, kernel columns
SHAPES = [(2, 9, 7, 3, k, k) for k in range(1, 16)] + [
  (1, 3, 2, 5, 7, 7),  # a feature map smaller than the kernel
  (3, 8, 12, 1, 4, 3),  # one channel, one even and one odd side
  (5, 4, 6, 7, 2, 5),
  (6, 40, 5, 2, 3, 3),
  (1, 1, 1, 4, 6, 1),
]


def random_case(shape, dtype=jnp.float32, seed=0):
  batch, height, width, channels, rows, columns = shape
  rng = np.random.default_rng(seed)
  sizes = (
    (batch, height, width, channels),
    (rows, columns, channels),
    (batch, height, width, channels),
  )
  return [jnp.asarray(rng.standard_normal(size), dtype) for size in sizes]


def value_and_grads(conv, x, kernel, g):
  y, vjp = jax.vjp(conv, x, kernel)
  return y, *vjp(g)


depthwise_conv_cbhw = partial(depthwise_conv, order="cbhw")


def channel_major(x, kernel, **kw):
  """The channel-major convolution, applied to (b, h, w, c) feature maps."""
  return depthwise_conv_cbhw(x.transpose(3, 0, 1, 2), kernel, **kw).transpose(1, 2, 3, 0)


def assert_close(got, want, tolerance):
  for name, a, b in zip(("y", "x_grad", "kernel_grad"), got, want, strict=True):
    error = np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-30)
    assert a.shape == b.shape and error <= tolerance, (name, a.shape, b.shape, error)


CONVS = {"bhwc": depthwise_conv, "cbhw": channel_major}


# The layouts differ only in a transpose, so channel-major skips the long list of cases.
@pytest.mark.parametrize(
  "layout, shape", [*(("bhwc", s) for s in SHAPES), *(("cbhw", s) for s in SHAPES[-6:])], ids=str
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float32_matches_reference(layout, shape, implementation):
  case = random_case(shape)
  got = jax.jit(partial(value_and_grads, partial(CONVS[layout], implementation=implementation)))(
    *case
  )
  assert_close(got, reference(*case), 1e-5)


@pytest.mark.parametrize("layout", CONVS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kernel_dtype", [jnp.bfloat16, jnp.float32])
def test_bfloat16_accumulates_in_float32(implementation, layout, kernel_dtype):
  x, kernel, g = random_case((4, 12, 12, 3, 9, 9), jnp.bfloat16)
  case = x, kernel.astype(kernel_dtype), g
  got = jax.jit(partial(value_and_grads, partial(CONVS[layout], implementation=implementation)))(
    *case
  )
  assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, kernel_dtype]
  assert_close(got, reference(*case), 1e-2)


def test_channel_blocks_join_seamlessly():
  case = random_case((2, 64, 64, 300, 3, 3))  # 10 MB of padded feature maps: more than one block
  got = value_and_grads(partial(depthwise_conv, implementation="taps"), *case)
  assert_close(got, reference(*case), 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_equals_loop(implementation):
  cases = [random_case((2, 5, 6, 3, 4, 3), seed=seed) for seed in range(3)]
  call = partial(value_and_grads, partial(depthwise_conv, implementation=implementation))
  got = jax.vmap(call)(*(jnp.stack(a) for a in zip(*cases, strict=True)))
  for n, case in enumerate(cases):
    assert_close([a[n] for a in got], reference(*case), 1e-5)


def test_shared_kernel_vmap_equals_loop():
  x, kernel, _ = random_case((6, 5, 6, 3, 3, 3))
  got = jax.vmap(depthwise_conv, (0, None))(x.reshape(3, 2, 5, 6, 3), kernel)
  np.testing.assert_allclose(got.reshape(x.shape), depthwise_conv(x, kernel), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", CONVS)
@pytest.mark.parametrize(
  "implementation", [*IMPLEMENTATIONS, pytest.param("pallas", marks=pytest.mark.slow)]
)
def test_gradient_of_the_gradient(implementation, layout):
  """Compares with forward mode over the reference; perturbs x, kernel and g."""
  case = random_case((2, 8, 9, 3, 4, 3))
  weights = random_case((2, 8, 9, 3, 4, 3), seed=1)[:2]

  def gradients(implementation, x, kernel, g):
    conv = partial(CONVS[layout], implementation=implementation)
    return jax.vjp(conv, x, kernel)[1](g)

  def product(implementation, *args):
    found = gradients(implementation, *args)
    return sum(jnp.vdot(a, w) for a, w in zip(found, weights, strict=True))

  got = jax.jit(jax.grad(partial(product, implementation), (0, 1, 2)))(*case)
  want = jax.jit(jax.jacfwd(partial(product, "xla"), (0, 1, 2)))(*case)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "pallas"])
def test_an_empty_batch_has_no_gradient(implementation):
  call = jax.jit(partial(value_and_grads, partial(depthwise_conv, implementation=implementation)))
  y, x_grad, kernel_grad = call(*random_case((0, 8, 8, 3, 3, 3)))
  assert y.shape == x_grad.shape == (0, 8, 8, 3)
  np.testing.assert_array_equal(kernel_grad, np.zeros((3, 3, 3)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("conv, batch_axis", [(depthwise_conv, 0), (depthwise_conv_cbhw, 1)])
def test_a_batch_over_an_explicit_axis(conv, batch_axis, implementation):
  x, kernel, g = random_case((16, 5, 6, 3, 3, 3))
  want = reference(x, kernel, g)
  if batch_axis:
    want = [*(a.transpose(3, 0, 1, 2) for a in want[:2]), want[2]]
    x, g = (a.transpose(3, 0, 1, 2) for a in (x, g))
  # Nothing is sharded along the second axis: a sum over it would double the result.
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
  data, copy = (jax.NamedSharding(mesh, spec) for spec in (P(*[None] * batch_axis, "data"), P()))
  call = jax.jit(partial(value_and_grads, partial(conv, implementation=implementation)))
  got = call(*jax.device_put((x, kernel, g), (data, copy, data)))
  assert_close(got, want, 1e-5)
  assert [a.sharding.is_fully_replicated for a in got] == [False, False, True]


def test_forward_mode_of_xla_is_the_convolution_of_the_tangents():
  x, kernel, g = random_case((1, 4, 4, 2, 3, 3))
  conv = partial(depthwise_conv, implementation="xla")
  _, tangent = jax.jvp(conv, (x, kernel), (g, 2 * kernel))
  np.testing.assert_allclose(tangent, conv(g, kernel) + 2 * conv(x, kernel), rtol=1e-5, atol=1e-5)


def test_forward_mode_raises():
  x, kernel, g = random_case((1, 4, 4, 2, 3, 3))
  with pytest.raises(TypeError, match="custom_vjp"):
    jax.jvp(depthwise_conv, (x, kernel), (g, kernel))


def test_platform_of_lowering_decides():
  x, kernel, g = random_case((2, 8, 8, 4, 3, 3))
  exported = {
    platform: jax.export.export(
      jax.jit(partial(value_and_grads, depthwise_conv)), platforms=(platform,)
    )(x, kernel, g)
    for platform in ("cpu", "cuda", "tpu")
  }
  uses_convolution = {
    platform: "convolution" in e.mlir_module() for platform, e in exported.items()
  }
  assert uses_convolution == {"cpu": False, "cuda": True, "tpu": True}
  assert_close(exported["cpu"].call(x, kernel, g), reference(x, kernel, g), 1e-5)


def test_export_with_symbolic_batch():
  batch = jax.export.symbolic_shape("batch")[0]
  x, kernel, g = random_case((3, 6, 6, 4, 3, 3))
  exported = jax.export.export(jax.jit(depthwise_conv), platforms=("cpu",))(
    jax.ShapeDtypeStruct((batch, 6, 6, 4), jnp.float32), kernel
  )
  y = exported.call(x, kernel)
  np.testing.assert_allclose(y, reference(x, kernel, g)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("conv, batch_axis", [(depthwise_conv, 0), (depthwise_conv_cbhw, 1)])
def test_shard_map_over_eight_devices(conv, batch_axis, implementation):
  x, kernel, g = random_case((16, 5, 6, 3, 3, 3))
  want = reference(x, kernel, g)
  if batch_axis:
    x, g = (a.transpose(3, 0, 1, 2) for a in (x, g))
  data = P(*[None] * batch_axis, "data")
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def step(x, kernel, g):
    def loss(x, kernel):
      return (conv(x, kernel, implementation=implementation) * g).sum()

    return jax.grad(loss, (0, 1))(x, kernel)

  sharded = jax.shard_map(step, mesh=mesh, in_specs=(data, P(), data), out_specs=(data, P()))
  x_grad, kernel_grad = jax.jit(sharded)(x, kernel, g)
  if batch_axis:
    x_grad = x_grad.transpose(1, 2, 3, 0)
  assert_close([x_grad, x_grad, kernel_grad], [want[1], want[1], want[2]], 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sharded_jit(implementation):
  case = random_case((16, 5, 6, 3, 3, 3))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  shardings = [jax.NamedSharding(mesh, spec) for spec in (P("data"), P(), P("data"))]
  call = jax.jit(partial(value_and_grads, partial(depthwise_conv, implementation=implementation)))
  assert_close(call(*jax.device_put(case, shardings)), reference(*case), 1e-5)


@pytest.mark.parametrize(
  "x_shape, x_dtype, kernel_shape, implementation, error, words",
  [
    ((4, 4, 2), "float32", (3, 3, 2), None, ValueError, "x_bhwc must have 4 dimensions"),
    ((1, 4, 4, 2), "float32", (3, 3, 1, 2), None, ValueError, "kernel_hwc must have 3 dimensions"),
    ((1, 4, 4, 2), "float32", (3, 3, 4), None, ValueError, "2 channels of x_bhwc"),
    ((1, 4, 4, 2), "float32", (0, 3, 2), None, ValueError, "at least one row"),
    (
      (1, 4, 4, 2),
      "int32",
      (3, 3, 2),
      None,
      TypeError,
      "x_bhwc must be float32 or bfloat16, got int32",
    ),
    (
      (1, 4, 4, 2),
      "float32",
      (3, 3, 2),
      "fast",
      ValueError,
      "implementation is 'fast'; allowed: None, taps, xla, native, banded, pallas",
    ),
  ],
)
def test_bad_input_names_the_argument(x_shape, x_dtype, kernel_shape, implementation, error, words):
  with pytest.raises(error, match=words):
    depthwise_conv(
      jnp.ones(x_shape, x_dtype), jnp.ones(kernel_shape), implementation=implementation
    )
