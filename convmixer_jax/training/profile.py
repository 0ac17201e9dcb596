"""A trace of some training steps, for TensorBoard and Perfetto."""

import logging
import pathlib
from typing import Any

import jax

from convmixer_jax import storage
from convmixer_jax.errors import UserError

_log = logging.getLogger(__name__)


class Profile:
  """Traces the steps from the first to the last one of `steps` into WORKDIR/profile.

  Each process writes what its host and its devices did.

  Args:
    steps: (first, last) step, counted from 1; None traces nothing.
    workdir: directory of the run.

  Raises:
    UserError: if `steps` are set and the workdir is in an object store.
  """

  def __init__(self, steps: tuple[int, int] | None, workdir: pathlib.Path):
    if steps is not None and storage.is_remote(workdir):
      raise UserError(
        f"config.run.profile_steps is {steps}, but traces are written to local disks only: set a "
        "local --workdir"
      )
    self._first, self._last = steps or (0, 0)
    self._directory = workdir / "profile"
    self._is_tracing = False

  def begin(self, step: int) -> None:
    """Starts the trace if this is the first step of it; call it before the step."""
    if step == self._first:
      jax.profiler.start_trace(str(self._directory))
      self._is_tracing = True

  def end(self, step: int, values: Any) -> None:
    """Writes the trace if this is the last step of it, when the step's `values` are computed."""
    if self._is_tracing and step == self._last:
      jax.block_until_ready(values)
      self._stop()
      _log.info("traced steps %d to %d into %s", self._first, self._last, self._directory)

  def _stop(self) -> None:
    self._is_tracing = False
    jax.profiler.stop_trace()

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *error) -> None:
    if self._is_tracing:  # the run ends before the last step of the trace
      self._stop()
