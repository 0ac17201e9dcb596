"""Which depthwise convolution is expected to win, with a compiler that says what it is told to."""

import pytest

from convmixer_jax import config as config_lib
from convmixer_jax import depthwise
from convmixer_jax.aot import candidates, targets
from convmixer_jax.aot.account import Account
from convmixer_jax.depthwise import by_platform


@pytest.fixture
def config(configs):
  return config_lib.read(configs / "imagenet_1536_20.py")


@pytest.fixture(autouse=True)
def two(monkeypatch):
  names = {"gpu": ("xla", "pallas"), "tpu": ("xla", "pallas"), "cpu": ("native", "taps")}
  monkeypatch.setattr(depthwise, "CANDIDATES", names)


def compare(config, target, moved, cycles=None):
  seen = []

  def measure(small):
    name = small.model.depthwise or "xla"
    seen.append(small)
    if moved[name] is None:
      return Account(1.0, refused="out of registers"), None
    return Account(1.0, moved=moved[name]), cycles and cycles[name]

  winner, found, why = candidates.compare(config, targets.parse(target), measure)
  assert [one.implementation for one in found] == [one.model.depthwise or "xla" for one in seen]
  return winner.implementation, why, seen


def test_each_is_compiled_in_one_block_without_augmentation(config):
  *_, seen = compare(config, "h100x8", {"xla": 10**9, "pallas": 10**9})
  for small in seen:
    config_lib.validate(small)
    assert (small.model.depth, small.augment.policy, small.augment.mixup_alpha) == (1, None, 0.0)
  assert (config.model.depth, config.model.depthwise) == (20, None)


def test_products_on_matrix_units_win_until_they_move_too_much(config):
  assert compare(config, "h100x8", {"xla": 10**9, "pallas": 10**9})[0] == "pallas"
  assert compare(config, "h100x8", {"xla": 10**9, "pallas": 10**11})[0] == "xla"


def test_cycles_decide_where_they_are_counted(config):
  moved = {"xla": 10**9, "pallas": 10**9}
  winner, why, _ = compare(config, "v5e:2x2", moved, {"xla": 3e6, "pallas": 4.5e6})
  assert winner == "xla"
  assert "2.00 ms, 3.00 with pallas (by the schedule's cycles" in why


def test_what_the_compiler_refuses_cannot_win(config):
  winner, why, _ = compare(config, "h100", {"xla": 10**9, "pallas": None})
  assert winner == "xla"
  assert why == "the compiler refused all others"
  winner, why, _ = compare(config, "h100", {"xla": None, "pallas": None})
  assert (winner, why) == ("xla", "the compiler refused all; this is the first")


def test_on_cpu_it_is_what_runs_take(config, monkeypatch):
  monkeypatch.setattr(by_platform, "default_on_cpu", lambda: "taps")
  assert compare(config, "cpu", {"native": 1, "taps": 2})[0] == "taps"
