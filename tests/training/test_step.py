import re

import jax
import numpy as np
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.parallel import sharding
from convmixer_jax.training.experiment import Experiment
from tests import trajectory
from tests.close import assert_close


@pytest.fixture
def config(configs):
  """A small model on digits, two epochs of 22 steps."""
  config = config_lib.read(configs / "digits.py")
  config.model.update(dim=8, depth=1, kernel_size=3, patch_size=2)
  config.run.update(epochs=2)
  return config


def steps(config, count, devices=None):
  """The state after the first steps, and their mean losses."""
  experiment = Experiment(config, sharding.make_mesh(devices, config.parallel.fsdp))
  state, losses = experiment.fresh_state(), []
  for batch in experiment.batches.iterate(0, count):
    state, values = experiment.train_step(state, experiment.shard_batch(batch))
    losses.append(float(values["loss"]) / float(values["count"]))
  return state, losses


@pytest.mark.parametrize("group_size", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_eight_devices_take_the_steps_of_one(config, group_size):
  config.data.group_size = group_size
  config.optimizer.learning_rate = 0.001

  one, losses_one = steps(config, 5, jax.devices()[:1])
  eight, losses_eight = steps(config, 5)
  np.testing.assert_allclose(losses_one, losses_eight, rtol=1e-5)
  assert losses_one[0] != losses_one[-1]
  assert_close(one.batch_stats, eight.batch_stats, 1e-4)
  assert_close(one.params, eight.params, 1e-3)


PARALLEL = {
  "data": {},
  "fsdp": {"parallel.fsdp": 4},
  "activations computed again": {"parallel.fsdp": 2, "parallel.remat": "activations"},
  "fsdp alone, scan and remat": {
    "parallel.fsdp": 8,
    "parallel.scan": True,
    "parallel.remat": "blocks",
  },
}


# "fsdp" covers "data" too: two groups of four devices share one state each.
@pytest.mark.parametrize(
  "name", ["fsdp", *(pytest.param(n, marks=pytest.mark.slow) for n in PARALLEL if n != "fsdp")]
)
def test_however_the_state_is_cut_the_steps_are_the_same(config, name):
  config.data.group_size = 8
  config.model.update(dim=64, depth=2)
  config.optimizer.learning_rate, config.step.accumulate_steps = 0.001, 2
  one, losses_one = steps(config, 5, jax.devices()[:1])
  config.update_from_flattened_dict(PARALLEL[name])
  eight, losses_eight = steps(config, 5)
  np.testing.assert_allclose(losses_one, losses_eight, rtol=1e-5)
  assert_close(one.params, eight.params, 1e-4)
  for tree in (eight.params, eight.opt_state[1].mu, eight.opt_state[1].nu):
    kernel = tree["blocks_0"]["pointwise"]["kernel"]
    shapes = {shard.data.shape for shard in kernel.addressable_shards}
    assert shapes == {(1, 1, 64, 64 // config.parallel.fsdp)}


EVERYTHING = {
  "augment.policy": "rand-m9-mstd0.5-inc1",
  "augment.mixup_alpha": 0.5,
  "augment.cutmix_alpha": 0.5,
  "augment.label_smoothing": 0.1,
  "augment.erase_probability": 0.25,
}


@pytest.mark.parametrize(
  "settings",
  [{}, pytest.param(EVERYTHING, marks=pytest.mark.slow)],
  ids=["plain", "everything"],
)
def test_groups_of_one_device_need_no_messages_but_the_gradient(config, settings):
  """One all-reduce of gradients, means of running statistics over groups, and sums of metrics."""
  config.data.group_size = 8
  config.update_from_flattened_dict(settings)
  assert collectives(config) == ["all-reduce"]


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "group_size"), [(80, 16), (64, 16)])
def test_groups_on_several_devices_send_their_sums_and_not_their_maps(config, batch, group_size):
  """Ten or eight images per device on eight devices, in groups of 16."""
  config.data.update(batch_size=batch, group_size=group_size)
  config.optimizer.learning_rate = 0.001
  assert set(collectives(config)) == {"all-reduce"}
  one, losses_one = steps(config, 5, jax.devices()[:1])
  eight, losses_eight = steps(config, 5)
  np.testing.assert_allclose(losses_one, losses_eight, rtol=1e-5)
  assert_close(one.batch_stats, eight.batch_stats, 1e-4)


def test_without_groups_the_statistics_are_sent(config):
  assert collectives(config).count("all-reduce") > 3


def collectives(config):
  """The names of all collectives in the compiled step."""
  experiment = Experiment(config)
  batch = experiment.shard_batch(experiment.batches[0])
  text = experiment.train_step.lower(experiment.fresh_state(), batch).compile().as_text()
  kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
  return re.findall(rf" ({kinds})(?:-start)?\(", text)


def test_the_first_steps_are_as_they_were(config):
  """Change these numbers only if training is meant to change, and say why."""
  config.run.update(epochs=1, log_every_steps=1, max_steps=3)
  _, losses = steps(config, 3)
  np.testing.assert_allclose(losses, [2.334402, 2.289921, 2.331097], rtol=1e-4)


@pytest.mark.parametrize("name", trajectory.RECIPES)
def test_twenty_steps_are_pytorchs(name):
  """With the same weights, batches, schedule, clipping and decay: `golden/make_trajectory.py`."""
  golden = trajectory.load(name)
  losses, norms, variables = trajectory.run(name)
  np.testing.assert_allclose(losses, golden["loss"], rtol=2e-5)
  np.testing.assert_allclose(norms, golden["grad_norm"], rtol=1e-3)
  assert (golden["grad_norm"] > 0.7).sum() > 5  # clipping takes effect
  assert golden["loss"][-1] < golden["loss"][0] - 0.1
  for part, tolerance in (("batch_stats", 1e-4), ("params", 1e-3)):
    assert jax.tree.structure(variables[part]) == jax.tree.structure(golden["after"][part])
    assert_close(variables[part], golden["after"][part], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_accumulated_parts_give_the_gradient_of_the_batch(config, loss):
  """With groups as large as the parts, parts and whole batch have the same batch statistics.

  The running statistics differ: each part updates them once, as in a single PyTorch process.
  """
  config.optimizer.update(learning_rate=0.001, eps=1e-3)
  config.step.loss = loss
  config.data.group_size = 16
  whole, losses = steps(config, 3)
  config.step.accumulate_steps = 4
  parts, losses_of_parts = steps(config, 3)
  np.testing.assert_allclose(losses, losses_of_parts, rtol=1e-5)
  assert_close(whole.params, parts.params, 2e-5)
  stem, stem_of_parts = (s.batch_stats["stem_norm"]["mean"] for s in (whole, parts))
  assert np.abs(stem - stem_of_parts).max() > 1e-3


@pytest.mark.slow
def test_a_summed_loss_has_the_gradient_of_all_examples(config):
  config.optimizer.clip_norm = None
  norms = {}
  for loss in ("mean", "sum"):
    config.step.loss = loss
    experiment = Experiment(config)
    batch = experiment.shard_batch(next(experiment.batches.iterate(0, 1)))
    _, values = experiment.train_step(experiment.fresh_state(), batch)
    norms[loss] = float(values["grad_norm"])
  np.testing.assert_allclose(norms["sum"], 64 * norms["mean"], rtol=1e-5)


def test_an_unknown_loss_is_refused(config):
  config.step.loss = "median"
  experiment = Experiment(config)
  batch = experiment.shard_batch(experiment.batches[0])
  with pytest.raises(ValueError, match=r"^loss is 'median'; allowed: mean, sum"):
    experiment.train_step(experiment.fresh_state(), batch)
