"""What to change so that a run fits into its devices: each answer is compiled, none is guessed."""

from collections.abc import Callable, Iterator
import copy
import dataclasses
import math
from typing import Any

from ml_collections import config_dict

from convmixer_jax import config as config_lib
from convmixer_jax.aot.account import Account
from convmixer_jax.config.keys import KEYS, Setting

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
  """A config that was compiled.

  Attributes:
    settings: what differs from the user's, as {"section.key": value}.
    account: the compiler's, of the training step.
    fits: whether a device's memory is enough.
  """

  settings: Settings
  account: Account
  fits: bool


def rematerializations() -> tuple[Any, ...]:
  """The values of config.parallel.remat, from the fastest to the one that takes least memory."""
  key = KEYS["parallel"]["remat"]
  return key.names if isinstance(key, Setting) else (False, True)


def fits(account: Account, memory: int) -> bool:
  """Whether a program was made, and takes no more than the memory of a device."""
  return account.refused is None and account.total <= memory


def cheapest_that_fits(
  config: config_dict.ConfigDict,
  account: Account,
  devices: int,
  memory: int,
  measure: Callable[[config_dict.ConfigDict], Account],
) -> list[Trial]:
  """Tries what costs least time first, until something fits; the last trial is the advice.

  Args:
    config: the user's.
    account: of the training step with it.
    devices: number of devices.
    memory: bytes of each.
    measure: compiles the training step of a config.
  """
  trials = []
  for settings in _ladder(config, devices):
    changed = copy.deepcopy(config)
    changed.update_from_flattened_dict(settings)
    found = measure(changed) if settings else account
    trials.append(Trial(settings, found, fits(found, memory)))
    if trials[-1].fits:
      break
  return trials


def _ladder(config: config_dict.ConfigDict, devices: int) -> Iterator[Settings]:
  """Settings that take less and less memory, and more and more time; {} for the config itself."""
  now, levels = config.parallel.remat, rematerializations()
  for level in levels:
    yield {} if level == now else {"parallel.remat": level}
  settings: Settings = {} if now == levels[-1] else {"parallel.remat": levels[-1]}
  if devices > 1 and config.parallel.fsdp == 1:
    settings["parallel.fsdp"] = devices
    yield dict(settings)
  batch = config.data.batch_size
  unit = math.lcm(devices, config_lib.batch_unit(config))
  while batch > unit:
    batch = max(batch // 2 // unit, 1) * unit
    yield {**settings, "data.batch_size": batch}
