"""SIGTERM, SIGINT and SIGHUP as a request to save and stop."""

import logging
import signal
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax.parallel import sharding

_log = logging.getLogger(__name__)


class Interrupted(Exception):
  """A signal stops work that the next start does again."""


class Interrupt:
  """Context in which the first signal is recorded for `poll`; a second one kills the process.

  With a single process, signals have their usual effect until the first `poll`: before it, there is
  nothing to save. Several processes must end together, so they record signals from the start of
  the context. At its end, the previous handlers are restored.

  A terminal that is closed may send SIGHUP several times, so SIGHUP never kills. If SIGHUP was
  ignored before (`nohup`), it stays ignored.

  Attributes:
    signum: the signal that stops the run, the same in all its processes; None if there is none.
  """

  signum: int | None = None

  def __init__(self) -> None:
    self._noted = 0
    self._is_active = False
    self._before: dict[int, Any] = {}
    self._wakeup = -1
    self._is_alone = jax.process_count() == 1
    if not self._is_alone:
      mesh = sharding.make_mesh()
      self._sharding = sharding.batch_sharding(mesh)
      self._greatest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
      self._vote: jax.Array | None = None

  def __enter__(self) -> "Interrupt":
    if not self._is_alone:
      self._activate()
    return self

  def __exit__(self, *error) -> None:
    self._restore(*self._before)

  def poll(self) -> int | None:
    """The signal to stop for, or None; all processes must call this after each step or batch.

    Processes agree without blocking: the devices reduce the recorded signals after the current
    step, and the result is read after the next one.
    """
    if self._is_alone:
      if not self._is_active:
        self._activate()
      return self.signum
    mine = np.full(jax.local_device_count(), self._noted, np.int32)
    vote = self._greatest(jax.make_array_from_process_local_data(self._sharding, mine))
    before, self._vote = self._vote, vote
    if before is not None and (signum := int(before)):
      self.signum = signum
    return self.signum

  def check(self) -> None:
    """Raises Interrupted if `poll`, which it calls, returns a signal."""
    if self.poll() is not None:
      raise Interrupted

  def _activate(self) -> None:
    self._is_active = True
    signums = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
      signums.append(signal.SIGHUP)
    self._before = {signum: signal.signal(signum, self._note) for signum in signums}
    self._wakeup = signal.set_wakeup_fd(-1)  # or else `cli.run` would end the process

  def _note(self, signum: int, frame: types.FrameType | None) -> None:
    if self._noted:  # SIGHUP
      return
    self._noted = signum
    if self._is_alone:
      self.signum = signum
    _log.warning("%s: saving after this step, then exit", signal.Signals(signum).name)
    self._restore(signal.SIGTERM, signal.SIGINT)

  def _restore(self, *signums: int) -> None:
    for signum in signums:
      signal.signal(signum, self._before[signum])
    if self._is_active:
      signal.set_wakeup_fd(self._wakeup)
