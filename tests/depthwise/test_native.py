"""The C++ depthwise convolution: its FFI calls, their export, and models that use it.

`test_depthwise.py` tests its results, together with the other implementations.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import config
from convmixer_jax.depthwise import by_platform, depthwise_conv, native
from convmixer_jax.errors import UserError
from convmixer_jax.native.compiler import library
from convmixer_jax.training.build import make_model
from tests.depthwise.test_depthwise import (
  assert_close,
  needs_compiler,
  random_case,
  value_and_grads,
)
from tests.depthwise_reference import reference

conv = partial(depthwise_conv, implementation="native")


@pytest.fixture
def no_compiler(monkeypatch):
  monkeypatch.setenv("CXX", "no-such-compiler")
  for function in (library, native.why_not, by_platform.default_on_cpu):
    function.cache_clear()
  yield
  for function in (library, native.why_not, by_platform.default_on_cpu):
    function.cache_clear()


def test_a_missing_compiler_is_named_with_the_alternative(no_compiler):
  with pytest.raises(UserError, match=r"'no-such-compiler' cannot be run.*use .taps"):
    native.register()


def is_native(function, *args):
  return "convmixer_jax_depthwise" in jax.jit(function).lower(*args).as_text()


@needs_compiler
def test_none_is_native_where_there_is_a_compiler(caplog):
  by_platform.default_on_cpu.cache_clear()
  x, kernel, _ = random_case((2, 5, 6, 3, 3, 3))
  with caplog.at_level("INFO"):
    assert is_native(lambda x, kernel: depthwise_conv(x, kernel), x, kernel)
    assert is_native(lambda x, kernel: depthwise_conv(2 * x, kernel), x, kernel)
  (message,) = [m for m in caplog.messages if "depthwise" in m]
  assert message == "depthwise convolution on CPU: native (C++, compiled on this machine)"


def test_none_is_taps_where_there_is_no_compiler(no_compiler, caplog):
  case = random_case((2, 5, 6, 3, 3, 3))
  assert not is_native(lambda x, kernel: depthwise_conv(x, kernel), *case[:2])
  (message,) = [m for m in caplog.messages if "depthwise" in m]
  assert "on CPU: taps, which is slower than native: the C++ compiler 'no-such-com" in message
  got = jax.jit(partial(value_and_grads, depthwise_conv))(*case)
  assert_close(got, reference(*case), 1e-5)


@needs_compiler
@pytest.mark.parametrize("channels", [5, 40])
def test_many_images_and_partial_vectors_of_channels(channels):
  case = random_case((70, 9, 17, channels, 4, 11))
  assert_close(jax.jit(partial(value_and_grads, conv))(*case), reference(*case), 1e-5)


@needs_compiler
def test_empty_batch_has_no_gradient():
  y, x_grad, kernel_grad = value_and_grads(conv, *random_case((0, 5, 5, 3, 3, 3)))
  assert y.shape == x_grad.shape == (0, 5, 5, 3)
  np.testing.assert_array_equal(kernel_grad, np.zeros((3, 3, 3)))


@needs_compiler
def test_sums_do_not_depend_on_threads():
  case = random_case((16, 16, 16, 24, 5, 5))
  step = jax.jit(partial(value_and_grads, conv))
  first = step(*case)
  for _ in range(20):
    jax.tree.map(np.testing.assert_array_equal, step(*case), first)


@needs_compiler
@pytest.mark.parametrize("axes", [(0, None), (None, 0)])
def test_vmap_over_one_argument(axes):
  x, kernel, g = random_case((2, 5, 6, 3, 4, 3))
  args = [
    a if axis is None else jnp.stack([a, 2 * a]) for a, axis in zip((x, kernel), axes, strict=True)
  ]
  y = reference(x, kernel, g)[0]
  np.testing.assert_allclose(jax.vmap(conv, axes)(*args), [y, 2 * y], rtol=1e-5, atol=1e-5)


@needs_compiler
def test_other_platforms_are_refused():
  x, kernel, _ = random_case((1, 4, 4, 2, 3, 3))
  with pytest.raises(NotImplementedError, match="cuda"):
    jax.export.export(jax.jit(conv), platforms=("cuda",))(x, kernel)


@needs_compiler
def test_export_with_symbolic_batch():
  x, kernel, g = random_case((3, 6, 6, 4, 3, 3))
  (batch,) = jax.export.symbolic_shape("batch")
  spec = jax.ShapeDtypeStruct((batch, 6, 6, 4), jnp.float32)
  checks = [jax.export.DisabledSafetyCheck.custom_call(target) for target in native.TARGETS]
  exported = jax.export.export(
    jax.jit(partial(value_and_grads, conv)), platforms=("cpu",), disabled_checks=checks
  )(spec, kernel, spec)
  assert_close(exported.call(x, kernel, g), reference(x, kernel, g), 1e-5)


def test_model_for_another_platform_is_refused(configs):
  with pytest.raises(UserError, match=r"depthwise is .native.*gpu: leave it unset"):
    make_model(*setting(configs, "native", "gpu"))


def setting(configs, depthwise, platform):
  """A config, and a stand-in for a mesh with what `make_model` reads from it."""
  cfg = config.read(configs / "cifar10_256_8.py")
  cfg.model.depthwise = depthwise
  return cfg, SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]), size=1)
