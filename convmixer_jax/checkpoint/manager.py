"""Checkpoints of a run, written in the background by Orbax.

A checkpoint is a directory `workdir/checkpoints/STEP`. It holds the whole
`TrainState`, the random key among it, and the position in the data, which is
the number of the next batch, with a fingerprint of each array.
"""

import json
import logging
import pathlib
from typing import Any

import jax
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_manager as ocp_manager
from orbax.checkpoint import checkpoint_managers as ocp_policies
from orbax.checkpoint import checkpoint_utils, options

from convmixer_jax import storage
from convmixer_jax.checkpoint.fingerprint import fingerprints
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import processes

_log = logging.getLogger(__name__)


class Checkpoints:
  """Saves a run's states, and keeps the newest `keep` and the most accurate of them.

  `resume` comes first, since it clears corrupt checkpoints out of the way.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 2):
    self._directory = _directory(workdir)
    # Orbax's `max_to_keep` with `best_fn` would delete the newest one if it scored badly.
    policy = ocp_policies.AnyPreservationPolicy(
      [
        ocp_policies.LatestN(keep),
        ocp_policies.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
      ]
    )
    settings = ocp_manager.CheckpointManagerOptions(best_fn=_accuracy, preservation_policy=policy)
    self._manager = ocp_manager.CheckpointManager(self._directory, options=settings)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *error) -> None:
    self._manager.close()  # waits for the saves under way

  def save(self, step: int, state: TrainState, accuracy: float | None = None) -> None:
    """Begins to save; `state` may be donated as soon as this returns.

    Args:
      step: number of finished steps.
      state: all of it.
      accuracy: on the test split, if it was just evaluated.
    """
    tree = _as_tree(state)
    items = ocp_args.Composite(
      state=ocp_args.PyTreeSave(tree),
      position=ocp_args.JsonSave({"next_batch": step, "fingerprints": fingerprints(tree)}),
    )
    metrics = None if accuracy is None else {"accuracy": accuracy}
    self._manager.save(step, args=items, metrics=metrics, force=True)

  def latest(self) -> pathlib.Path | None:
    """The newest checkpoint, saves under way included."""
    self._manager.wait_until_finished()
    step = self._manager.latest_step()
    return None if step is None else self._directory / str(step)

  def best(self) -> int | None:
    """The step of the most accurate checkpoint, or of the newest where none has an accuracy."""
    self._manager.wait_until_finished()
    return self._manager.best_step()


def restore(workdir: pathlib.Path, like: Any, step: int | None = None) -> tuple[Any, int]:
  """A saved state, or a part of it, and its position in the data; changes nothing on disk.

  Args:
    workdir: of the run.
    like: a dictionary of `TrainState`'s fields, all or some, whose leaves have the
      shapes, the dtypes and the shardings to read: on other devices than at the
      save, if need be.
    step: which checkpoint; None for the newest that can be read. Newer ones
      that cannot are named in the log.

  Raises:
    UserError: if `step`, or every one, is missing or cannot be read.
  """
  directory = _directory(workdir)
  index = jax.process_index()
  settings = ocp_manager.CheckpointManagerOptions(
    read_only=True,
    lightweight_initialize=True,  # its metrics would fail as a whole if one file is corrupt
    # Each process reads by itself: Orbax would wait for one that finds an array corrupt.
    multiprocessing_options=options.MultiprocessingOptions(index, {index}, str(index)),
  )
  with ocp_manager.CheckpointManager(directory, options=settings) as manager:
    steps = processes.broadcast(sorted(manager.all_steps(), reverse=True))
    if not steps:
      raise UserError(f"{directory} has no checkpoint")
    if step is not None and step not in steps:
      raise UserError(f"--step={step} is not in {directory}; there are {steps[::-1]}")
    for candidate in steps if step is None else [step]:
      found = None
      try:
        _check_metrics(directory / str(candidate))
        found = _read(manager, candidate, like)
      except Exception as error:  # whatever the many readers below Orbax raise
        reason = str(error).partition("\n")[0]
        _log.error(
          "%s cannot be read: %s: %s", directory / str(candidate), type(error).__name__, reason
        )
      if not processes.all_agree(found is not None) or found is None:
        continue
      state, position = found
      if differing := _differing(state, position):
        _log.error(
          "%s cannot be read: not what was saved: %s", directory / str(candidate), differing
        )
      else:
        return state, candidate
  raise UserError(
    f"no checkpoint in {directory} can be read, see the errors above; nothing was changed. "
    "Restore that directory from a copy, or start anew with another --workdir"
  )


def has_begun(workdir: pathlib.Path) -> bool:
  """Whether the run has a checkpoint, readable or not."""
  return bool(_steps(workdir))


def resume(workdir: pathlib.Path, fresh: TrainState) -> tuple[TrainState, int]:
  """The newest state that can be read, or `fresh` and 0 where nothing was saved yet.

  Corrupt checkpoints would be in the way of the next saves: they are moved to
  `workdir/unreadable_checkpoints`.

  Raises:
    UserError: as `restore` does.
  """
  directory, steps = _directory(workdir), _steps(workdir)
  if not steps:
    return fresh, 0
  found, step = restore(workdir, _as_tree(fresh))
  for other in steps if jax.process_index() == 0 else []:
    if other > step or not _is_sound(directory / str(other)):
      target = directory.with_name("unreadable_checkpoints") / str(other)
      target.parent.mkdir(exist_ok=True)
      (directory / str(other)).rename(target)
      _log.warning("moved the corrupt checkpoint of step %d to %s", other, target)
  processes.barrier("corrupt checkpoints are out of the way")
  return TrainState(**{**found, "key": jax.random.wrap_key_data(found["key"])}), step


def _read(manager: ocp_manager.CheckpointManager, step: int, like: Any) -> tuple[Any, Any]:
  """The state, and what lies beside it as JSON."""
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
  restore_args = checkpoint_utils.construct_restore_args(like)
  items = ocp_args.Composite(
    state=ocp_args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True),
    position=ocp_args.JsonRestore(),
  )
  found = manager.restore(step, args=items)
  if found.position["next_batch"] != step:
    raise ValueError(f"its position is {found.position}")
  return found.state, found.position


def _differing(state: Any, position: Any) -> str:
  """Names of arrays that are not as they were saved; Orbax notices that in most files only."""
  saved = position.get("fingerprints", {})  # older checkpoints have none
  found = fingerprints(state)
  return ", ".join(name for name in found if saved.get(name, found[name]) != found[name])


def _check_metrics(checkpoint: pathlib.Path) -> None:
  """Raises ValueError if the accuracy, where there is one, cannot be read."""
  file = checkpoint / "metrics" / "metrics"
  if file.exists():
    float(json.loads(file.read_text())["accuracy"])


def _is_sound(checkpoint: pathlib.Path) -> bool:
  try:
    _check_metrics(checkpoint)
  except (KeyError, TypeError, ValueError):
    return False
  return True


def _accuracy(metrics: dict[str, float]) -> float:
  return metrics["accuracy"]


def _steps(workdir: pathlib.Path) -> list[int]:
  names = [path.name for path in _directory(workdir).glob("*")]
  return processes.broadcast([int(name) for name in names if name.isdecimal()])


def _directory(workdir: pathlib.Path) -> pathlib.Path:
  directory = workdir / "checkpoints"
  return directory if storage.is_remote(directory) else directory.absolute()


def _as_tree(state: TrainState) -> dict[str, Any]:
  """The fields by name; the random key as plain numbers, which every version of Orbax can save."""
  fields = {**vars(state), "key": jax.random.key_data(state.key)}
  return {name: value for name, value in fields.items() if value is not None}
