"""Corrupt examples of a split, and how many a run tolerates."""

import dataclasses
import logging

from convmixer_jax.errors import UserError

_log = logging.getLogger(__name__)

_SHOWN = 3


@dataclasses.dataclass
class CorruptExamples:
  """The corrupt examples found so far.

  Attributes:
    limit: how many are tolerated; 0 raises at the first.
    reasons: by index, which example it is and what is wrong with it.
  """

  limit: int = 0
  reasons: dict[int, str] = dataclasses.field(default_factory=dict)

  def check(self, found: dict[int, str]) -> None:
    """Counts new and known corrupt examples together.

    Raises:
      UserError: naming the first few, if there are more than `limit`.
    """
    reasons = self.reasons | found
    if len(reasons) <= self.limit:
      return
    shown = "; ".join(list(reasons.values())[:_SHOWN])
    rest = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    raise UserError(
      f"{len(reasons)} examples are corrupt, config.run.max_corrupt is {self.limit}: {shown}{rest}."
      " Repair the data or raise the limit, and re-run the command: it resumes from the latest "
      "checkpoint"
    )

  def note(self, found: dict[int, str]) -> None:
    """Records what was found, and logs each new one; raises like `check`."""
    self.check(found)
    new = {index: reason for index, reason in found.items() if index not in self.reasons}
    self.reasons = self.reasons | new  # a new dict, because threads read the old one
    for reason in new.values():
      _log.warning("skipped a corrupt example: %s", reason)
    if new:
      _log.warning(
        "corrupt examples so far: %d (limit: config.run.max_corrupt=%d)",
        len(self.reasons),
        self.limit,
      )
