"""SIGTERM and SIGINT as a request to save and stop."""

import logging
import signal
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import mesh as mesh_lib

_log = logging.getLogger(__name__)


class Interrupt:
  """While this context is open, the first signal is noted for `poll`; a second one kills.

  On leaving, the handlers from before are back.

  Attributes:
    signum: the signal that the run stops for, the same in all its processes.
  """

  signum: int | None = None

  def __init__(self) -> None:
    self._noted = 0
    self._before: dict[signal.Signals, Any] = {}
    self._is_alone = jax.process_count() == 1
    if not self._is_alone:
      mesh = mesh_lib.make_mesh()
      self._sharding = mesh_lib.sharded(mesh)
      self._greatest = jax.jit(jnp.max, out_shardings=mesh_lib.replicated(mesh))
      self._vote: jax.Array | None = None

  def __enter__(self) -> "Interrupt":
    self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *error) -> None:
    self._restore()

  def poll(self) -> int | None:
    """The signal to stop for, if there is one; all processes ask once after each step.

    They agree without waiting for each other: what each has noted is put together on the devices,
    behind the step under way, and looked at after the next one.
    """
    if self._is_alone:
      return self.signum
    mine = np.full(jax.local_device_count(), self._noted, np.int32)
    vote = self._greatest(jax.make_array_from_process_local_data(self._sharding, mine))
    before, self._vote = self._vote, vote
    if before is not None and (signum := int(before)):
      self.signum = signum
    return self.signum

  def _note(self, signum: int, frame: types.FrameType | None) -> None:
    self._noted = signum
    if self._is_alone:
      self.signum = signum
    _log.warning("%s: saving after this step, then exit", signal.Signals(signum).name)
    self._restore()

  def _restore(self) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)
