import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convmixer_jax import ConvMixer
from convmixer_jax.checkpoint.manager import Checkpoints, restore, resume
from convmixer_jax.checkpoint.state import create_state
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import sharding

MODEL = ConvMixer(8, 1, 3, 2, 4)
FRESH_SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, 4, 4, 3)))["params"]


@pytest.fixture(scope="module")
def fresh():
  mesh = sharding.make_mesh()
  return create_state(MODEL, optax.adam(0.1), mesh, seed=3, image_shape=(4, 4, 3))


def at_step(state, step):
  return state.replace(
    step=jnp.full_like(state.step, step), params=jax.tree.map(lambda x: x + step, state.params)
  )


def save(workdir, fresh, accuracies, keep=2):
  with Checkpoints(workdir, keep) as checkpoints:
    for step, accuracy in accuracies.items():
      checkpoints.save(step, at_step(fresh, step), accuracy)


def steps(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)
    assert x.dtype == y.dtype


def test_state_position_and_key_come_back(tmp_path, fresh):
  save(tmp_path, fresh, {5: None})
  state, step = resume(tmp_path, fresh)
  assert step == 5
  assert_same(state, at_step(fresh, 5))
  assert state.key.dtype == fresh.key.dtype
  assert state.params["head"]["kernel"].sharding == fresh.params["head"]["kernel"].sharding
  position = tmp_path / "checkpoints" / "5" / "position" / "metadata"
  assert json.loads(position.read_text())["next_batch"] == 5


def test_an_empty_workdir_gives_the_fresh_state(tmp_path, fresh):
  state, step = resume(tmp_path, fresh)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
  assert step == 0
  assert state is fresh


def test_the_newest_and_the_most_accurate_are_kept(tmp_path, fresh):
  save(tmp_path, fresh, {1: 0.5, 2: 0.9, 3: None, 4: 0.6, 5: None, 6: 0.7, 7: None})
  assert steps(tmp_path) == [2, 6, 7]


def test_donating_the_state_does_not_change_the_save(tmp_path, fresh):
  state = jax.tree.map(jnp.copy, fresh)
  overwrite = jax.jit(
    lambda s: s.replace(params=jax.tree.map(lambda x: x * 0 - 7, s.params)), donate_argnums=0
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    overwrite(state)
  assert_same(resume(tmp_path, fresh)[0], fresh)


def read(workdir, step=None):
  """Restores the parameters and the step."""
  everywhere = sharding.replicated(sharding.make_mesh())
  like = {"params": jax.tree.map(lambda x: x.update(sharding=everywhere), FRESH_SHAPES)}
  return restore(workdir, like, step)


def test_each_array_comes_to_the_devices_that_are_asked_for(tmp_path, fresh):
  """Saved on eight devices, restored on four, with one array sharded."""
  save(tmp_path, fresh, {1: None})
  mesh = sharding.make_mesh(jax.devices()[:4])
  like = jax.tree.map(lambda x: x.update(sharding=sharding.replicated(mesh)), FRESH_SHAPES)
  like["head"]["kernel"] = like["head"]["kernel"].update(sharding=sharding.batch_sharding(mesh))
  found = restore(tmp_path, {"params": like})[0]["params"]
  assert_same(found, at_step(fresh, 1).params)
  assert found["head"]["kernel"].sharding == sharding.batch_sharding(mesh)
  assert found["head"]["bias"].sharding == sharding.replicated(mesh)


def truncate(directory):
  """Truncates every file with array data to half its size."""
  files = [f for f in (directory / "state").rglob("*") if f.is_file() and f.stat().st_size > 1000]
  assert files
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_metadata(directory):
  (directory / "state" / "_METADATA").unlink()


def spoil_position(directory):
  (directory / "position" / "metadata").write_text('{"next_ba')


def spoil_metrics(directory):
  (directory / "metrics" / "metrics").write_text('{"accu')


def empty(directory):
  for file in directory.rglob("*"):
    if file.is_file():
      file.unlink()


def exchange_arrays(directory):
  """Replaces the arrays by others, which Orbax reads without an error."""
  shutil.rmtree(directory / "state")
  shutil.copytree(directory.with_name("1") / "state", directory / "state")


def move_position(directory):
  file = directory / "position" / "metadata"
  file.write_text(file.read_text().replace('"next_batch": 2', '"next_batch": 3'))


@pytest.mark.parametrize(
  "corruption",
  [exchange_arrays, move_position, truncate, remove_metadata, spoil_position, spoil_metrics, empty],
)
def test_a_corrupt_newest_checkpoint_gives_the_one_before(tmp_path, fresh, caplog, corruption):
  save(tmp_path, fresh, {1: 0.5, 2: 0.6})
  corruption(tmp_path / "checkpoints" / "2")
  state, step = resume(tmp_path, fresh)
  assert step == 1
  assert_same(state, at_step(fresh, 1))
  assert "checkpoints/2 cannot be read" in caplog.text
  assert (tmp_path / "unreadable_checkpoints" / "2").is_dir()  # moved, not deleted
  save(tmp_path, fresh, {2: 0.6})
  assert steps(tmp_path) == [1, 2]
  assert_same(resume(tmp_path, fresh)[0], at_step(fresh, 2))


def test_a_corrupt_accuracy_of_an_older_checkpoint_does_not_stop_the_run(tmp_path, fresh):
  save(tmp_path, fresh, {1: 0.5, 2: 0.6})
  spoil_metrics(tmp_path / "checkpoints" / "1")
  assert resume(tmp_path, fresh)[1] == 2
  save(tmp_path, fresh, {3: 0.7})
  assert steps(tmp_path) == [2, 3]


def test_when_all_are_corrupt_nothing_is_touched(tmp_path, fresh):
  save(tmp_path, fresh, {1: 0.5, 2: 0.6})
  truncate(tmp_path / "checkpoints" / "1")
  truncate(tmp_path / "checkpoints" / "2")
  with pytest.raises(UserError, match="can be read"):
    resume(tmp_path, fresh)
  assert steps(tmp_path) == [1, 2]


def test_restoring_alone_leaves_a_corrupt_one_in_place(tmp_path, fresh):
  save(tmp_path, fresh, {1: 0.5, 2: 0.6})
  truncate(tmp_path / "checkpoints" / "2")
  variables, step = read(tmp_path)
  assert step == 1
  assert set(variables) == {"params"}
  assert_same(variables["params"], at_step(fresh, 1).params)
  with pytest.raises(UserError, match="can be read"):
    read(tmp_path, step=2)
  with pytest.raises(UserError, match=r"--step=7 is not in .*it has the steps \[1, 2\]"):
    read(tmp_path, step=7)
  assert steps(tmp_path) == [1, 2]


def test_nothing_to_restore(tmp_path):
  with pytest.raises(UserError, match="has no checkpoint"):
    read(tmp_path)
