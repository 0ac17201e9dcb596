"""SIGTERM and SIGINT as a request to save and stop."""

import logging
import signal
import types

_log = logging.getLogger(__name__)


class Interrupt:
  """While this context is open, the first signal is noted in `signum`; a second one kills.

  The training loop looks at `signum` after each step. On leaving, the handlers
  from before are back.
  """

  signum: int | None = None

  def __enter__(self) -> "Interrupt":
    self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *error) -> None:
    self._restore()

  def _note(self, signum: int, frame: types.FrameType | None) -> None:
    self.signum = signum
    _log.warning("%s: saving after this step, then exit", signal.Signals(signum).name)
    self._restore()

  def _restore(self) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)
