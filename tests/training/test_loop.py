import errno
import fcntl
import json
import os
import shlex
import signal

import chex
import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint.manager import resume
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import lock
from convmixer_jax.results.writer import Writer
from convmixer_jax.training.evaluate import evaluate_checkpoint
from convmixer_jax.training.evaluator import Evaluator
from convmixer_jax.training.experiment import Experiment
from convmixer_jax.training.loop import train


def small(configs):
  """Two epochs of 22 steps with a small model; saves at 10, 20, 22, 30, 40 and 44."""
  config = config_lib.read(configs / "digits.py")
  config.model.update(dim=8, depth=1, kernel_size=3, patch_size=2)
  config.data.group_size = 8  # the images of one device, for fewer collectives
  config.run.update(epochs=2, log_every_steps=4, eval_every_epochs=1, checkpoint_every_steps=10)
  return config


@pytest.fixture
def config(configs):
  return small(configs)


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory):
  """The workdir of such a run that was not interrupted."""
  workdir = tmp_path_factory.mktemp("whole")
  assert train(small(configs), workdir) is None
  return workdir


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(config, workdir):
  return resume(workdir, Experiment(config).fresh_state())


def assert_identical(a, b):
  a, b = a.replace(key=jax.random.key_data(a.key)), b.replace(key=jax.random.key_data(b.key))
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


FULL_POLICY = {
  "augment.policy": "rand-m9-mstd0.5-inc1",
  "augment.mixup_alpha": 0.5,
  "augment.cutmix_alpha": 0.5,
  "augment.label_smoothing": 0.1,
  "augment.erase_probability": 0.25,
}


@pytest.mark.slow
def test_averaged_weights_follow_their_formula_and_are_evaluated(config, tmp_path):
  config.step.ema_decay = 0.75
  experiment = Experiment(config)
  state = experiment.fresh_state()
  expected = jax.device_get(state.variables())
  for batch in experiment.batches.iterate(0, 3):
    state, _ = experiment.train_step(state, experiment.shard_batch(batch))
    now = jax.device_get(state.variables())
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, expected, now)
  chex.assert_trees_all_close(state.ema, expected, rtol=1e-6, atol=1e-6)
  config.run.max_steps = 22
  train(config, tmp_path)
  whole, _ = saved(config, tmp_path)
  found = [line for line in lines(tmp_path) if line["split"] == "eval_ema"]
  assert [line["step"] for line in found] == [22]
  assert found[0].items() >= Experiment(config).evaluators["eval"](whole.ema).items()


@pytest.mark.slow
def test_the_training_split_is_evaluated_in_test_mode(config, whole, tmp_path):
  """As in the Flux blog: on images without augmentation, using the running statistics."""
  assert config.augment.crop_padding
  config.run.eval_train = True
  train(config, tmp_path)
  found = lines(tmp_path)
  evaluated = [line for line in found if line["split"] == "train_eval"]
  assert [(line["step"], line["num_examples"]) for line in evaluated] == [(22, 1437), (44, 1437)]
  config.data.eval_split = "train"
  expected = evaluate_checkpoint(config, tmp_path, 44)
  assert all(evaluated[-1][key] == expected[key] for key in ("loss", "accuracy"))
  # The rest of the run is the same.
  keys = ("step", "split", "loss", "accuracy")
  others = [[line[key] for key in keys] for line in found if line["split"] != "train_eval"]
  assert others == [[line[key] for key in keys] for line in lines(whole)]


@pytest.mark.slow
def test_the_most_accurate_checkpoint_is_tested_at_the_end(config, tmp_path):
  """As in the Keras example: the last 90 % of the training split, validated on the rest."""
  config.data.update(eval_split="test", test_split="train", eval_batch_size=96)
  config.optimizer.learning_rate = 0.03
  config.run.update(epochs=4, keep_checkpoints=1)
  train(config, tmp_path)
  evaluations = [line for line in lines(tmp_path) if line["split"] == "eval"]
  best = max(evaluations, key=lambda line: line["accuracy"])
  last = lines(tmp_path)[-1]
  assert (last["split"], last["step"], last["checkpoint"]) == ("test", 88, best["step"])
  config.data.eval_split = "train"
  assert evaluate_checkpoint(config, tmp_path, best["step"])["accuracy"] == last["accuracy"]
  assert last["num_examples"] == 1437
  config.data.eval_split = "test"
  train(config, tmp_path)  # the run is finished
  assert lines(tmp_path)[-1] == last


def evaluations(workdir):
  return [line for line in lines(workdir) if line["split"] == "eval"]


@pytest.mark.parametrize(
  ("settings", "stops"),
  [
    pytest.param({}, (13, 22, 37, None), id="plain"),
    pytest.param(FULL_POLICY, (37, None), id="full policy", marks=pytest.mark.slow),
  ],
)
def test_a_run_that_was_cut_ends_as_one_that_was_not(config, whole, tmp_path, settings, stops):
  if settings:
    config.update_from_flattened_dict(settings)
    whole = tmp_path / "whole"
    assert train(config, whole) is None
  cut = tmp_path / "cut"
  for stop in stops:
    config.run.max_steps = stop
    assert train(config, cut) is None
  expected, step = saved(config, whole)
  assert step == 44
  assert_identical(expected, saved(config, cut)[0])
  assert [line for line in evaluations(cut) if line["step"] in (22, 44)] == evaluations(whole)
  assert [line["step"] for line in evaluations(whole)] == [22, 44]
  steps = [line["step"] for line in lines(cut) if line["split"] == "train"]
  assert steps == sorted({*range(4, 45, 4), *stops[:-1]})


def test_the_workdir_holds_what_it_promises(config, whole):
  assert {path.name for path in whole.iterdir() if not path.name.startswith("events.out")} == {
    "config.json", "class_names.json", "metrics.jsonl", "starts.jsonl", "checkpoints"}  # fmt: skip
  assert list(whole.glob("events.out.tfevents.*"))
  first, last = lines(whole)[0], lines(whole)[-1]
  assert set(first) == {"step", "epoch", "split", "loss", "accuracy", "top5_accuracy",
                        "learning_rate", "grad_norm", "images_per_sec"}  # fmt: skip
  assert set(last) == {"step", "epoch", "split", "loss", "accuracy", "top5_accuracy",
                       "num_examples"}  # fmt: skip
  assert (last["step"], last["epoch"], last["split"], last["num_examples"]) == (44, 2, "eval", 360)
  found = evaluate_checkpoint(config, whole)
  assert found == {key: last[key] for key in found}
  assert evaluate_checkpoint(config, whole, step=40)["step"] == 40


def test_a_finished_run_says_so_and_what_it_says_works(config, tmp_path, capsys):
  """The line names the best of the two epochs."""
  workdir = tmp_path / "a run"
  train(config, workdir)
  before = (workdir / "metrics.jsonl").read_text()
  found = capsys.readouterr().out.splitlines()
  best = max((x for x in lines(workdir) if x["split"] == "eval"), key=lambda x: x["accuracy"])
  checkpoint = workdir / "checkpoints" / str(best["step"])
  assert checkpoint.is_dir()
  assert found[-1].startswith(f"best accuracy {best['accuracy']:.4g}, at step {best['step']}: ")
  assert f": {checkpoint}. To evaluate it: python -m convmixer_jax.main --mode=eval" in found[-1]
  assert shlex.split(found[-1])[-2:] == [f"--workdir={workdir}", f"--step={best['step']}"]
  train(config, workdir)
  assert (workdir / "metrics.jsonl").read_text() == before
  again = capsys.readouterr().out.splitlines()
  assert again[0].startswith(f"{workdir} is finished: 44 steps are done. To train longer")
  assert again[1:] == found[-1:]


@pytest.mark.parametrize(
  ("run", "advice"),
  [
    pytest.param({"epochs": 1}, "--config.run.epochs=2", marks=pytest.mark.slow),
    ({"max_steps": 4}, "--config.run.max_steps=8"),
    pytest.param(
      {"epochs": 1, "max_steps": 22},
      "--config.run.epochs=2 --config.run.max_steps=44",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_finished_run_trains_longer_as_it_says(config, tmp_path, capsys, run, advice):
  config.run.update(run)
  for _ in range(2):
    train(config, tmp_path)
  done = lines(tmp_path)[-1]["step"]
  assert capsys.readouterr().out.splitlines()[-2].endswith(f"repeat the command with {advice}")
  for setting in advice.split():
    key, _, value = setting.removeprefix("--config.run.").partition("=")
    config.run[key] = int(value)
  train(config, tmp_path)
  assert lines(tmp_path)[-1]["step"] == 2 * done


def test_a_workdir_that_is_in_use_is_left_alone(config, tmp_path):
  config.run.max_steps = 4
  train(config, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
  config.run.max_steps = 8
  with lock.one_writer(tmp_path), pytest.raises(UserError, match="is already in use by"):
    train(config, tmp_path)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_a_run_that_lost_its_workdir_saves_no_more(config, tmp_path, monkeypatch):
  """As if suspended for minutes, on a file system without locks."""

  def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")

  def taken_over_at_step_12(writer):
    advance(writer)
    if len(steps := [*steps_taken, None]) == 12:
      (tmp_path / lock.FILE).write_text('{"pid": 7, "host": "other", "since": "2020"}')
    steps_taken[:] = steps

  advance, steps_taken = Writer.advance, []
  monkeypatch.setattr(fcntl, "lockf", refuse)
  monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
  monkeypatch.setattr(Writer, "advance", taken_over_at_step_12)
  with pytest.raises(UserError, match="was taken over by process 7 on host other"):
    train(config, tmp_path)
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]


@pytest.mark.slow
def test_the_cache_of_compiled_programs_changes_no_bit(config, tmp_path):
  config.run.max_steps = 6
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
  compilation_cache.reset_cache()
  try:
    train(config, tmp_path / "compiled")  # fills the cache
    train(config, tmp_path / "kept")
    assert list((tmp_path / "cache").glob("jit_train_step-*"))
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    train(config, tmp_path / "without")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
  states = [saved(config, tmp_path / name)[0] for name in ("compiled", "kept", "without")]
  assert_identical(states[0], states[1])
  assert_identical(states[0], states[2])


@pytest.mark.parametrize(
  ("signum", "at"),
  [
    (signal.SIGTERM, 7),
    pytest.param(signal.SIGTERM, 22, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 7, marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, 7, marks=pytest.mark.slow),
  ],
)
def test_a_signal_saves_and_the_run_continues_from_there(
  config, whole, tmp_path, monkeypatch, signum, at
):
  """At step 22 an evaluation is due; the resumed run catches up on it."""
  advance = Writer.advance

  def signal_before_step_ends(writer):
    advance(writer)
    if len(steps := [*steps_taken, None]) == at:
      os.kill(os.getpid(), signum)
    steps_taken[:] = steps

  steps_taken = []
  with monkeypatch.context() as patch:
    patch.setattr(Writer, "advance", signal_before_step_ends)
    assert train(config, tmp_path / "stopped") == signum
  assert saved(config, tmp_path / "stopped")[1] == at
  assert train(config, tmp_path / "stopped") is None
  assert_identical(saved(config, whole)[0], saved(config, tmp_path / "stopped")[0])
  assert evaluations(tmp_path / "stopped") == evaluations(whole)


@pytest.mark.parametrize(
  "evaluation", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))]
)
def test_a_signal_ends_an_evaluation_which_the_next_start_repeats(
  config, whole, tmp_path, monkeypatch, evaluation
):
  """The evaluations 1 and 2 are those at steps 22 and 44, the third is of the test split."""
  config.data.test_split = config.data.eval_split if evaluation == 3 else None
  config.data.eval_batch_size = 64
  call, batches = Evaluator.__call__, []

  def evaluate(evaluator, variables, after_batch):
    def signal_then_check():
      batches[-1] += 1
      if len(batches) == evaluation:
        os.kill(os.getpid(), signal.SIGTERM)
      after_batch()

    batches.append(0)
    return call(evaluator, variables, signal_then_check)

  with monkeypatch.context() as patch:
    patch.setattr(Evaluator, "__call__", evaluate)
    assert train(config, tmp_path) == signal.SIGTERM
  assert len(batches) == evaluation and batches[-1] == 1  # of 6
  assert saved(config, tmp_path)[1] == min(22 * evaluation, 44)
  assert len(evaluations(tmp_path)) == evaluation - 1
  assert train(config, tmp_path) is None
  assert_identical(saved(config, whole)[0], saved(config, tmp_path)[0])
  assert [line["step"] for line in evaluations(tmp_path)] == [22, 44]
  assert [line["split"] for line in lines(tmp_path)].count("test") == (evaluation == 3)


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
  config.optimizer.update(learning_rate=1e30, clip_norm=1e30)
  with pytest.raises(UserError) as error:
    train(config, tmp_path)
  assert "the loss is" in str(error.value)
  assert "The last good checkpoint: none, no save was due" in str(error.value)
  assert "config.optimizer.learning_rate" in str(error.value)


def test_another_config_is_refused_before_anything_is_touched(config, tmp_path):
  config.run.max_steps = 4
  train(config, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
  config.model.dim = 16
  with pytest.raises(UserError, match=r"config.model.dim was 8 and is 16"):
    train(config, tmp_path)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_bad_settings_leave_no_workdir(config, tmp_path):
  config.data.update(batch_size=100, group_size=None)
  with pytest.raises(UserError, match="8 devices"):
    train(config, tmp_path / "new")
  assert not (tmp_path / "new").exists()
