"""Checkpoints of a run, written in the background by Orbax.

A checkpoint is a directory `workdir/checkpoints/STEP`. It contains the whole
`TrainState`, including the random key, the position in the data (the number of
the next batch), and a fingerprint of each array.
"""

import json
import logging
import pathlib
from typing import Any

import jax
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_manager as ocp_manager
from orbax.checkpoint import checkpoint_managers as ocp_policies
from orbax.checkpoint import checkpoint_utils, handlers, options, type_handlers

from convmixer_jax import storage
from convmixer_jax.checkpoint.fingerprint import fingerprints
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import processes

_log = logging.getLogger(__name__)

# Replicas share the writing of arrays from this size on. Orbax's default is to slice even the
# smallest array, which took most of a save of a small model.
_SHARED_BYTES = 2**20


class Checkpoints:
  """Saves the states of a run, and keeps the latest `keep` and the most accurate one.

  Call `resume` before: it moves corrupt checkpoints away.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 2):
    self._directory = _directory(workdir)
    # Orbax's `max_to_keep` with `best_fn` would delete the latest one if it scored badly.
    policy = ocp_policies.AnyPreservationPolicy(
      [
        ocp_policies.LatestN(keep),
        ocp_policies.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
      ]
    )
    settings = ocp_manager.CheckpointManagerOptions(best_fn=_accuracy, preservation_policy=policy)
    arrays = type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SHARED_BYTES)
    registry = type_handlers.create_type_handler_registry((jax.Array, arrays))
    self._manager = ocp_manager.CheckpointManager(
      self._directory,
      options=settings,
      item_handlers={
        "state": handlers.PyTreeCheckpointHandler(type_handler_registry=registry),
        "position": handlers.JsonCheckpointHandler(),
      },
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *error) -> None:
    self._manager.close()  # waits for pending saves

  def save(self, step: int, state: TrainState, accuracy: float | None = None) -> None:
    """Starts an asynchronous save; `state` may be donated as soon as this returns.

    Args:
      step: number of finished steps.
      state: the state after them.
      accuracy: on the evaluation split, if the state was evaluated.
    """
    tree = _as_tree(state)
    items = ocp_args.Composite(
      state=ocp_args.PyTreeSave(tree),
      position=ocp_args.JsonSave({"next_batch": step, "fingerprints": fingerprints(tree)}),
    )
    metrics = None if accuracy is None else {"accuracy": accuracy}
    self._manager.save(step, args=items, metrics=metrics, force=True)

  def latest(self) -> pathlib.Path | None:
    """The latest checkpoint; waits for pending saves."""
    self._manager.wait_until_finished()
    step = self._manager.latest_step()
    return None if step is None else self._directory / str(step)

  def best(self) -> int | None:
    """The step of the most accurate checkpoint, or of the latest if none has an accuracy."""
    self._manager.wait_until_finished()
    return self._manager.best_step()


def restore(workdir: pathlib.Path, like: Any, step: int | None = None) -> tuple[Any, int]:
  """Reads a saved state, or a part of it, and returns it with its step; changes nothing on disk.

  Args:
    workdir: directory of the run.
    like: a dictionary of all or some of `TrainState`'s fields, whose leaves have the
      shapes, dtypes and shardings to read. The devices may differ from those of
      the save.
    step: which checkpoint; None for the latest readable one. Later ones that
      cannot be read are logged as errors.

  Raises:
    UserError: if `step`, or every checkpoint, is missing or cannot be read.
  """
  directory = _directory(workdir)
  index = jax.process_index()
  settings = ocp_manager.CheckpointManagerOptions(
    read_only=True,
    create=False,
    save_interval_steps=0,
    lightweight_initialize=True,  # reading all metrics would fail if one file is corrupt
    # Each process reads on its own: Orbax would wait for a process that finds a corrupt array.
    multiprocessing_options=options.MultiprocessingOptions(index, {index}, str(index)),
  )
  with ocp_manager.CheckpointManager(directory, options=settings) as manager:
    steps = processes.broadcast(sorted(manager.all_steps(), reverse=True))
    if not steps:
      raise UserError(f"{directory} has no checkpoint")
    if step is not None and step not in steps:
      raise UserError(f"--step={step} is not in {directory}; it has the steps {steps[::-1]}")
    for candidate in steps if step is None else [step]:
      found = None
      try:
        _check_metrics(directory / str(candidate))
        found = _read(manager, candidate, like)
      except Exception as error:  # Orbax's readers raise many types of errors
        reason = str(error).partition("\n")[0]
        _log.error(
          "%s cannot be read: %s: %s", directory / str(candidate), type(error).__name__, reason
        )
      if not processes.all_agree(found is not None) or found is None:
        continue
      state, position = found
      if differing := _differing(state, position):
        _log.error(
          "%s cannot be read: these arrays are not what was saved: %s",
          directory / str(candidate),
          differing,
        )
      else:
        return state, candidate
  raise UserError(
    f"no checkpoint in {directory} can be read, see the errors above; nothing was changed. "
    "Restore that directory from a backup, or start a new run with another --workdir"
  )


def has_begun(workdir: pathlib.Path) -> bool:
  """Whether the run has a checkpoint, readable or not."""
  return bool(_steps(workdir))


def resume(workdir: pathlib.Path, fresh: TrainState) -> tuple[TrainState, int]:
  """The latest readable state and its step, or `fresh` and 0 if there is no checkpoint.

  Corrupt checkpoints are moved to `workdir/unreadable_checkpoints`, where they do not
  interfere with later saves.

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
  """The state, and the JSON that is stored with it."""
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
  """Names of the arrays that differ from what was saved; Orbax does not detect all corruption."""
  saved = position.get("fingerprints", {})  # earlier checkpoints have none
  found = fingerprints(state)
  return ", ".join(name for name in found if saved.get(name, found[name]) != found[name])


def _check_metrics(checkpoint: pathlib.Path) -> None:
  """Raises an error if there is an accuracy that cannot be read."""
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
  """The fields by name, with the random key as integers, which every version of Orbax can save."""
  fields = {**vars(state), "key": jax.random.key_data(state.key)}
  return {name: value for name, value in fields.items() if value is not None}
