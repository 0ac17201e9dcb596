import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.aot import roofline
from convmixer_jax.aot.targets import CHIPS


@pytest.fixture
def config(configs):
  return config_lib.read(configs / "imagenet_1536_20.py")


def test_operations_are_counted_from_the_sizes(config):
  products, depthwise = roofline.operations(config, train=False)
  positions = 32 * 32
  assert depthwise == 2 * positions * 20 * 1536 * 81
  assert products == 2 * positions * (20 * 1536**2 + 1536 * 3 * 49) + 2 * 1536 * 1000
  assert roofline.operations(config, train=True) == (3 * products, 3 * depthwise)


def test_the_bound_is_that_of_the_busiest_unit(config):
  chip = CHIPS["v5e"]
  config.model.depthwise = "xla"
  one = roofline.roofline(config, chip, 10, 50_000_000_000, train=True)
  assert one.vector == pytest.approx(64 * 15.29e9 / chip.vector, rel=0.01)
  assert one.matrix == pytest.approx(64 * 291.3e9 / chip.matrix, rel=0.01)
  assert one.bound == 640 / max(one.vector, one.matrix, one.memory)
  assert one.in_turn < one.bound
  config.model.depthwise = "pallas"
  other = roofline.roofline(config, chip, 10, 50_000_000_000, train=True)
  assert other.vector == 0
  assert other.matrix == pytest.approx(64 * (291.3e9 + 15.29e9) / chip.matrix, rel=0.01)
