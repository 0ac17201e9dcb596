"""How many examples of a split a run bears that cannot be read or decoded."""

import dataclasses
import logging

from convmixer_jax.errors import UserError

_log = logging.getLogger(__name__)

_SHOWN = 3


@dataclasses.dataclass
class CorruptExamples:
  """The corrupt examples that were found so far.

  Attributes:
    limit: how many there may be; 0 stops at the first.
    reasons: of each by its number: what it is, and what is wrong with it.
  """

  limit: int = 0
  reasons: dict[int, str] = dataclasses.field(default_factory=dict)

  def check(self, found: dict[int, str]) -> None:
    """Counts what was found together with what is known.

    Raises:
      UserError: naming the first of them, if they are too many.
    """
    reasons = self.reasons | found
    if len(reasons) <= self.limit:
      return
    shown = "; ".join(list(reasons.values())[:_SHOWN])
    rest = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    raise UserError(
      f"{len(reasons)} examples are corrupt, config.run.max_corrupt is {self.limit}: {shown}{rest}."
      " Mend the data, or allow more of them, and repeat the command: it goes on from its newest "
      "checkpoint"
    )

  def note(self, found: dict[int, str]) -> None:
    """Remembers what was found, with one warning for each new one; raises as `check` does."""
    self.check(found)
    new = {index: reason for index, reason in found.items() if index not in self.reasons}
    self.reasons = self.reasons | new  # another dict: threads read this one
    for reason in new.values():
      _log.warning("skipped a corrupt example: %s", reason)
    if new:
      _log.warning(
        "%d corrupt so far; config.run.max_corrupt=%d allows no more than these",
        len(self.reasons),
        self.limit,
      )
