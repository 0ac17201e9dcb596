"""What to change, with a compiler that says what it is told to, and devices of any size."""

import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.aot import advice
from convmixer_jax.aot.account import Account

LEVELS = advice.rematerializations()


@pytest.fixture
def config(configs):
  config = config_lib.read(configs / "digits.py")
  config.data.update(batch_size=64, group_size=4)
  return config


def memory_of(config):
  """A state of 40, shared by fsdp, and 2 for an image, less with each level of remat."""
  level = LEVELS.index(config.parallel.remat)
  return 40 // config.parallel.fsdp + 2 * config.data.batch_size // (level + 1)


def trials(config, memory):
  def measure(changed):
    return Account(1.0, total=memory_of(changed))

  found = advice.cheapest_that_fits(config, measure(config), 8, memory, measure)
  assert [trial.fits for trial in found[:-1]] == [False] * (len(found) - 1)
  return found


def test_what_fits_is_left_alone(config):
  (only,) = trials(config, 168)
  assert (only.settings, only.fits) == ({}, True)


def test_rematerialization_comes_first(config):
  found = trials(config, 167)
  assert [trial.settings for trial in found] == [{}, {"parallel.remat": LEVELS[1]}]
  assert found[-1].fits


def test_then_the_state_is_shared(config):
  strongest = 128 // len(LEVELS)
  found = trials(config, 5 + strongest)
  assert len(found) == len(LEVELS) + 1
  assert found[-1].settings == {"parallel.remat": LEVELS[-1], "parallel.fsdp": 8}
  assert found[-1].fits


def test_then_the_batch_shrinks_to_what_devices_and_groups_can_share(config):
  config.data.update(batch_size=96)
  found = trials(config, 5 + 2 * 24 // len(LEVELS))
  assert [trial.settings.get("data.batch_size") for trial in found[-2:]] == [48, 24]
  assert found[-1].fits
  smallest = trials(config, 5)
  assert smallest[-1].settings["data.batch_size"] == 8
  assert not smallest[-1].fits


def test_slower_settings_than_needed_are_noticed(config):
  config.parallel.remat = LEVELS[-1]
  (found,) = trials(config, 168)
  assert found.settings == {"parallel.remat": LEVELS[0]}
  *_, last = trials(config, 40 + 128 // len(LEVELS))
  assert (last.settings, last.fits) == ({}, True)


def test_what_the_compiler_refuses_does_not_fit():
  assert not advice.fits(Account(1.0, refused="out of memory"), 10**12)
