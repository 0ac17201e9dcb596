"""The examples of a split that cannot be read or decoded, and how many of them a run bears."""

from collections.abc import Mapping
import logging

from convmixer_jax.errors import UserError

_log = logging.getLogger(__name__)

_SHOWN = 3


class Damage:
  """What was found so far; can be pickled for worker processes, whose copies find for themselves.

  Attributes:
    reasons: of each damaged example, by its number: what it is, and what is wrong with it.
    limit: how many there may be; 0 stops at the first.
  """

  def __init__(self, limit: int = 0):
    self.reasons: dict[int, str] = {}
    self.limit = limit

  def note(self, found: Mapping[int, str]) -> None:
    """Takes what was found into account, with one warning for each example.

    Raises:
      UserError: as `check` does.
    """
    new = {index: reason for index, reason in found.items() if index not in self.reasons}
    self.reasons = self.reasons | new  # a new one: threads copy it at any time
    self.check(self.reasons)
    for reason in new.values():
      _log.warning("skipped a damaged example: %s", reason)
    if new:
      _log.warning(
        "%d damaged so far; config.run.max_damaged=%d allows no more than these",
        len(self.reasons),
        self.limit,
      )

  def check(self, reasons: Mapping[int, str]) -> None:
    """Compares their number with the limit.

    Raises:
      UserError: naming the first of them, if they are too many.
    """
    if len(reasons) <= self.limit:
      return
    shown = "; ".join(list(reasons.values())[:_SHOWN])
    rest = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    raise UserError(
      f"{len(reasons)} examples are damaged, config.run.max_damaged is {self.limit}: {shown}{rest}."
      " Mend the data, or allow more of them, and repeat the command: it goes on from its newest "
      "checkpoint"
    )
