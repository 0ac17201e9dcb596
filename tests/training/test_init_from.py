import json
import logging
import shlex

from absl import flags
import chex
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np
import pytest

from convmixer_jax import augment, pretrained
from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint.manager import resume
from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.parallel import sharding
from convmixer_jax.pretrained import bundle
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel
from convmixer_jax.training import init_from
from convmixer_jax.training.build import make_evaluator
from convmixer_jax.training.evaluate import evaluate_checkpoint, evaluate_weights
from convmixer_jax.training.experiment import Experiment
from convmixer_jax.training.loop import train


@pytest.fixture
def config(configs):
  """Two steps on digits with a small model."""
  config = config_lib.read(configs / "digits.py")
  config.model.update(dim=8, depth=2, kernel_size=3, patch_size=2)
  config.data.cache = "none"
  config.run.update(epochs=1, max_steps=2)
  return config


def of_digits(names):
  return Preprocessing(8, (0.3053,), (0.3761,), 1.0, names)


def weights_file(path, num_classes):
  """Saves a model of that config, with random running statistics; returns path and variables."""
  model = ConvMixer(8, 2, 3, 2, num_classes)
  variables = model.init(jax.random.key(7), jnp.zeros((1, 8, 8, 1)))
  stats = jax.tree.map(
    lambda x: x + jax.random.uniform(jax.random.key(3), x.shape), variables["batch_stats"]
  )
  variables = {"params": variables["params"], "batch_stats": stats}
  names = tuple(map(str, range(num_classes)))
  bundle.save(path, TrainedModel(model, variables, "gelu", of_digits(names)))
  return str(path), variables


def saved(config, workdir):
  return resume(workdir, Experiment(config).fresh_state())[0]


def assert_same_bits(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def without_head(params):
  return {name: x for name, x in params.items() if name != "head"}


@pytest.mark.slow
def test_a_frozen_backbone_keeps_every_bit_and_the_head_learns(config, tmp_path):
  config.init_from, variables = weights_file(tmp_path / "weights", 10)
  # Adding 0 to a weight of -0 would change its bits.
  variables["params"]["stem"]["bias"] = jnp.full((8,), -0.0)
  (tmp_path / "weights").rename(tmp_path / "old")
  bundle.save(
    tmp_path / "weights", TrainedModel(ConvMixer(8, 2, 3, 2, 10), variables, "gelu", None)
  )
  config.step.update(freeze_backbone=True, ema_decay=0.5)
  config.model.dropout = 0.5
  train(config, tmp_path / "run")
  state = saved(config, tmp_path / "run")
  assert_same_bits(without_head(state.params), without_head(variables["params"]))
  assert_same_bits(state.batch_stats, variables["batch_stats"])
  change = np.abs(state.params["head"]["kernel"] - variables["params"]["head"]["kernel"])
  assert change.min() > 1e-6
  # Adam has moments only for the head.
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert moments < 3 * 90 < sum(x.size for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_a_frozen_models_gradient_is_that_of_its_head_in_evaluation_mode(config, tmp_path):
  config.init_from, variables = weights_file(tmp_path / "weights", 10)
  config.step.freeze_backbone = True
  config.augment.crop_padding = 0
  experiment = Experiment(config, sharding.make_mesh(jax.devices()[:1]))
  batch = next(experiment.batches.iterate(0, 1))
  state = init_from.begin(experiment.fresh_state(), variables)
  _, values = experiment.train_step(state, experiment.shard_batch(batch))

  image_bhwc = augment.normalize(batch["image"], config.augment.mean, config.augment.std)
  features = ConvMixer(8, 2, 3, 2, 10).apply(variables, image_bhwc, method="features").mean((1, 2))
  head = variables["params"]["head"]
  probability = jax.nn.softmax(features @ head["kernel"] + head["bias"][None])
  error = (probability - jax.nn.one_hot(batch["label"], 10)) / 64
  expected = np.sqrt(((features.T @ error) ** 2).sum() + (error.sum(0) ** 2).sum())
  np.testing.assert_allclose(values["grad_norm"], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("decay_kind", ["adamw", "l2"])
def test_a_lower_rate_is_exactly_that_factor_in_the_first_update(config, tmp_path, decay_kind):
  config.init_from, variables = weights_file(tmp_path / "weights", 10)
  config.optimizer.update(decay_kind=decay_kind, learning_rate=0.5)
  changes = {}
  for rate in (1.0, 0.25):  # powers of 2, so that the products are exact
    config.optimizer.backbone_rate = rate
    experiment = Experiment(config, sharding.make_mesh(jax.devices()[:1]))
    state = init_from.begin(experiment.fresh_state(), variables)
    gradients = jax.tree.map(lambda x: jnp.ones_like(x) * 0.3, state.params)
    updates, _ = experiment.optimizer.update(gradients, state.opt_state, state.params)
    changes[rate] = updates
  assert_same_bits(changes[1.0]["head"], changes[0.25]["head"])
  quarter = jax.tree.map(lambda x: x * 0.25, without_head(changes[1.0]))
  assert_same_bits(quarter, without_head(changes[0.25]))
  assert np.abs(changes[1.0]["stem"]["kernel"]).min() > 0


@pytest.mark.slow
def test_a_head_of_another_size_is_new_and_the_rest_is_not(config, tmp_path, caplog):
  caplog.set_level(logging.INFO, "convmixer_jax")
  config.init_from, variables = weights_file(tmp_path / "weights", 7)
  config.optimizer.update(learning_rate=1e-30, weight_decay=0.0)
  config.step.ema_decay = 0.5
  train(config, tmp_path / "run")
  assert "for a new head of 10 classes: it has 7" in caplog.text
  fresh, state = Experiment(config).fresh_state(), saved(config, tmp_path / "run")
  for params in (state.params, state.ema["params"]):
    for part, expected in ((without_head(params), without_head(variables["params"])),
                           (params["head"], fresh.params["head"])):  # fmt: skip
      chex.assert_trees_all_close(part, expected, rtol=0, atol=1e-20)
  assert json.loads((tmp_path / "run/config.json").read_text())["init_from"] == config.init_from


@pytest.mark.slow
def test_a_resumed_run_needs_the_weights_no_more_but_keeps_to_them(config, tmp_path):
  config.init_from, _ = weights_file(tmp_path / "weights", 10)
  train(config, tmp_path / "run")
  (tmp_path / "weights").rename(tmp_path / "gone")
  config.run.max_steps = 4
  assert train(config, tmp_path / "run") is None
  resumed = saved(config, tmp_path / "run")
  (tmp_path / "gone").rename(tmp_path / "weights")
  train(config, tmp_path / "whole")
  assert_same_bits(resumed.params, saved(config, tmp_path / "whole").params)
  config.init_from = "other"
  with pytest.raises(UserError, match=r"config.init_from was '.*weights' and is 'other'"):
    train(config, tmp_path / "run")


@pytest.mark.slow
def test_weights_are_evaluated_without_a_run(config, tmp_path):
  """A run that starts from them and does not change them has the same accuracy and loss."""
  config.init_from, variables = weights_file(tmp_path / "weights", 10)
  found = evaluate_weights(config)
  assert (found.pop("init_from"), found.pop("split")) == (config.init_from, "eval")
  assert found["num_examples"] == 360
  assert found == make_evaluator(config, sharding.make_mesh(), "test")(variables)
  config.step.freeze_backbone = True
  config.optimizer.update(learning_rate=1e-30, weight_decay=0.0)
  train(config, tmp_path / "run")
  assert found.items() <= evaluate_checkpoint(config, tmp_path / "run").items()


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"model.dim": 16}, "config.model.dim is 16, not 8"),
    ({"model.patch_size": 4}, "config.model.patch_size is 4, not 2"),
    ({"model.kernel_size": 5, "model.depth": 1}, "depth is 1, not 2; config.model.kernel_size is"),
    ({"augment.mean": (0.5, 0.5, 0.5), "augment.std": (0.5, 0.5, 0.5)}, "is 3, not 1"),
    ({"data.image_size": 9}, "patch_size is 2, which does not divide config.data.image_size=9"),
  ],
)
def test_weights_that_do_not_fit_are_refused_before_any_work(config, tmp_path, settings, message):
  config.init_from, _ = weights_file(tmp_path / "weights", 10)
  config.update_from_flattened_dict(settings)
  for work in (lambda: train(config, tmp_path / "run"), lambda: evaluate_weights(config)):
    with pytest.raises(UserError, match=message):
      work()
  assert not (tmp_path / "run").exists()


def test_another_head_cannot_be_evaluated(config, tmp_path):
  config.init_from, _ = weights_file(tmp_path / "weights", 7)
  with pytest.raises(UserError, match=r"config.model.num_classes is 10, not 7"):
    evaluate_weights(config)


def test_nothing_is_frozen_without_weights(config):
  config.step.freeze_backbone = True
  with pytest.raises(UserError, match=r"config.init_from is not set"):
    config_lib.validate(config)


def with_flags(config, arguments):
  """The config that the command reads with these flags."""
  values, argv = flags.FlagValues(), ["main", *arguments]
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  values(argv)
  return values["config"].value


def test_other_normalisation_is_refused_and_the_advice_works(config, tmp_path):
  config.init_from, _ = weights_file(tmp_path / "weights", 10)
  right = config.augment.to_dict()
  config.augment.update(mean=(0.5,), std=(0.25,))
  for work in (lambda: train(config, tmp_path / "run"), lambda: evaluate_weights(config)):
    with pytest.raises(
      UserError, match=r"mean \(0.3053,\) .* config.augment has .* \(0.5,\)"
    ) as found:
      work()
  advice = shlex.split(str(found.value).partition(": set ")[2])
  assert len(advice) == 2
  changed = with_flags(config, advice)
  assert (changed.augment.mean, changed.augment.std) == (right["mean"], right["std"])
  assert evaluate_weights(changed)["num_examples"] == 360


def test_another_size_of_images_is_only_logged(config, tmp_path, caplog):
  caplog.set_level(logging.INFO, "convmixer_jax")
  config.init_from, _ = weights_file(tmp_path / "weights", 10)
  init_from.read(config)
  assert "pixels" not in caplog.text
  config.data.image_size = 16
  init_from.read(config)
  assert "weights is for images of 8 pixels; config.data.image_size is 16" in caplog.text


def test_labels_that_mean_something_else_are_not_evaluated(config, tmp_path):
  config.init_from, variables = weights_file(tmp_path / "weights", 10)
  weights = pretrained.read(config.init_from)
  for number, (names, message) in enumerate((
    ("0123456798", "label 8 is '9' in .*, but '8' in config.data.dataset=digits"),
    ("abcdefghij", "label 0 is 'a' in .*, but '0' in"),
  )):  # fmt: skip
    path = tmp_path / f"other{number}"
    other = TrainedModel(weights.model, variables, "gelu", of_digits(tuple(names)))
    bundle.save(path, other)
    config.init_from = str(path)
    with pytest.raises(UserError, match=message):
      evaluate_weights(config)
    assert init_from.read(config)  # fine-tuning on other classes is allowed


def test_the_activation_is_the_configs_only_if_the_weights_do_not_tell_it(config, tmp_path):
  weights = pretrained.read(weights_file(tmp_path / "weights", 10)[0])
  for told, fits in ((None, True), ("gelu", True), ("relu", False)):
    config.init_from = str(tmp_path / f"{told}.safetensors")
    pretrained.save(config.init_from, TrainedModel(weights.model, weights.variables, told))
    if fits:
      init_from.read(config)
    else:
      with pytest.raises(UserError, match=r"config\.model\.activation is gelu, not relu"):
        init_from.read(config)
