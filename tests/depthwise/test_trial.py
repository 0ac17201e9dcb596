import math
import time
import types

import jax
import pytest

from convmixer_jax import depthwise
from convmixer_jax.depthwise import taps, xla
from convmixer_jax.depthwise.trial import Trial, fastest, try_each

SHAPE = 2, 9, 7, 5


def implementation(forward=xla.forward, backward=xla.backward):
  return types.SimpleNamespace(ORDER="bhwc", forward=forward, backward=backward)


def raising(*arrays):
  raise RuntimeError("no such kernel\nand more")


def wrong_kernel_gradient(x, kernel, y_grad):
  x_grad, kernel_grad = xla.backward(x, kernel, y_grad)
  return x_grad, kernel_grad * 1.02


def nan_forward(x, kernel):
  return xla.forward(x, kernel) * math.nan


def slow_forward(x, kernel):
  def wait(y):
    time.sleep(0.1)
    return y

  y = xla.forward(x, kernel)
  return jax.pure_callback(wait, y, y)


@pytest.fixture
def modules(monkeypatch):
  """The table of implementations with those that must not be taken."""
  for name, module in {
    "raising": implementation(forward=raising),
    "wrong": implementation(backward=wrong_kernel_gradient),
    "nan": implementation(forward=nan_forward),
    "slow": implementation(forward=slow_forward),
  }.items():
    monkeypatch.setitem(depthwise._MODULES, name, module)
  monkeypatch.setattr(depthwise, "IMPLEMENTATIONS", tuple(depthwise._MODULES))


def tried(*names, dtype="float32", kernel_size=4):
  return {
    trial.name: trial
    for trial in try_each(names, SHAPE, kernel_size, dtype, jax.local_devices()[0])
  }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_raises_is_wrong_or_slow_is_not_taken(modules, dtype):
  trials = tried("raising", "slow", "wrong", "nan", "taps", dtype=dtype)
  assert trials["raising"].problem == "raises RuntimeError: no such kernel"
  assert trials["wrong"].problem.startswith("differs from xla by 2.")
  assert trials["nan"].problem.startswith("differs from xla by nan")
  assert trials["slow"].seconds > 0.1 > trials["taps"].seconds
  assert trials["slow"].problem == trials["taps"].problem == ""
  assert fastest(list(trials.values())) == "taps"


def test_without_a_right_one_it_is_xla(modules):
  assert fastest(list(tried("raising", "wrong").values())) == "xla"
  assert fastest([]) == "xla"


@pytest.mark.parametrize("order", ["bhwc", "cbhw"])
def test_maps_come_in_the_order_that_suits(monkeypatch, order):
  """The implementation sees them as they are, without a transpose."""
  seen = []

  def forward(x, kernel):
    seen.append(x.shape)
    return taps.forward(x, kernel) if order == "cbhw" else xla.forward(x, kernel)

  module = taps if order == "cbhw" else xla
  entry = types.SimpleNamespace(ORDER=order, forward=forward, backward=module.backward)
  monkeypatch.setitem(depthwise._MODULES, "taps", entry)
  assert tried("taps")["taps"].problem == ""
  assert seen[0] == tuple(SHAPE["bhwc".index(letter)] for letter in order)


def test_a_trial_reads_as_name_and_time():
  assert str(Trial("pallas", 0.00123456)) == "pallas 1.23 ms"
  assert str(Trial("pallas", math.inf, "raises X: y")) == "pallas raises X: y"
