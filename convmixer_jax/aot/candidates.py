"""Which depthwise convolution to expect where the config leaves it open, and why."""

from collections.abc import Callable, Sequence
import copy
import dataclasses
import logging

from ml_collections import config_dict

from convmixer_jax import depthwise
from convmixer_jax.aot import roofline
from convmixer_jax.aot.account import Account
from convmixer_jax.aot.targets import Target
from convmixer_jax.depthwise import by_platform
from convmixer_jax.training import choice

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """An implementation in a step of one block.

  Attributes:
    implementation: one of `depthwise.IMPLEMENTATIONS`.
    account: the compiler's, of that step.
    milliseconds: of the step, as far as the compiler's account tells; None on CPU.
  """

  implementation: str
  account: Account
  milliseconds: float | None


def one_block(config: config_dict.ConfigDict, implementation: str) -> config_dict.ConfigDict:
  """The config of a step that shows what an implementation costs, and compiles in a minute.

  It has one block and no augmentation: all blocks are alike, and the rest is not concerned.
  """
  small = copy.deepcopy(config)
  small.model.update(depth=min(1, config.model.depth), depthwise=choice.setting(implementation))
  small.parallel.scan = False
  nothing = ("crop_padding", "rotate", "shift", "zoom", "jitter", "mixup_alpha", "cutmix_alpha")
  small.augment.update({name: type(small.augment[name])(0) for name in nothing})
  small.augment.update(policy=None, erase_probability=0.0)
  return small


def compare(
  config: config_dict.ConfigDict,
  target: Target,
  measure: Callable[[config_dict.ConfigDict], tuple[Account, float | None]],
) -> tuple[Candidate, list[Candidate], str]:
  """The expected winner, all candidates, and why it is expected to win.

  Args:
    config: whose depthwise convolution is None.
    target: the devices.
    measure: compiles a training step; returns its account, and on TPUs the cycles of a core.
  """
  found, cycled = [], False
  for name in depthwise.CANDIDATES[target.platform]:
    small = one_block(config, name)
    account, cycles = measure(small)
    cycled = cycled or cycles is not None
    found.append(Candidate(name, account, _milliseconds(small, target, account, cycles)))
  able = [one for one in found if one.account.refused is None]
  if not able:
    return found[0], found, "the compiler refused all; this is the first"
  if target.peaks is None:
    chosen = by_platform.default_on_cpu()
    winner = next((one for one in able if one.implementation == chosen), able[0])
    return winner, found, "it is what a run on this machine takes"
  if len(able) == 1:
    return able[0], found, "the compiler refused all others"
  winner = min(able, key=lambda one: one.milliseconds or 0.0)
  how = "operations and bytes over the peaks, one after the other"
  return winner, found, _why(winner, able, "the schedule's cycles, with floors" if cycled else how)


def _milliseconds(
  config: config_dict.ConfigDict, target: Target, account: Account, cycles: float | None
) -> float | None:
  if target.peaks is None or account.refused is not None:
    return None
  if cycles is not None:
    return 1e3 * cycles / target.peaks.clock
  limits = roofline.roofline(config, target.peaks, target.count, account.moved, train=True)
  return 1e3 * limits.images / limits.in_turn


def _why(winner: Candidate, able: Sequence[Candidate], how: str) -> str:
  others = ", ".join(
    f"{one.milliseconds:.2f} with {one.implementation}" for one in able if one is not winner
  )
  return f"a step of one block takes {winner.milliseconds:.2f} ms, {others} (by {how})"
