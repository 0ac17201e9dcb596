"""Runs the examples in docs/use.md and the README, and checks their claims."""

import pathlib
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import ConvMixer
from tests.close import assert_close
from tests.plain_convmixer import PlainConvMixer

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def blocks(path):
  """Extracts the Python code of a page."""
  return re.findall(r"```python\n(.*?)\n```", path.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def shown():
  """The namespace after running the page's Python code."""
  names = {}
  for block in blocks(ROOT / "docs" / "use.md"):
    exec(block, names)
  return names


def trained_alike(variables):
  """The variables with non-initial running statistics and norm parameters."""
  keys = iter(jax.random.split(jax.random.key(5), 99))
  moved = {
    part: jax.tree.map(lambda x: x + jax.random.uniform(next(keys), x.shape), tree)
    for part, tree in variables.items()
  }
  return moved


def test_compiled_steps_with_donated_buffers_are_the_plain_ones(shown):
  state = shown["params"], shown["batch_stats"], shown["opt_state"]
  batch = shown["image_bhwc"], shown["label_b"]
  first_loss = shown["loss_fn"](*state[:2], *batch)[0]
  for _ in range(2):
    *state, loss = shown["step"](*state, *batch)
  np.testing.assert_allclose(shown["loss"], loss, rtol=1e-5)
  assert loss < first_loss
  assert_close(shown["state"][1], state[1], 1e-5)


def test_recomputed_activations_give_the_same_gradient(shown):
  arguments = (shown[name] for name in ("params", "batch_stats", "image_bhwc", "label_b"))
  assert_close(shown["gradients"], jax.grad(shown["loss_fn"], has_aux=True)(*arguments)[0], 1e-5)


def test_a_tangent_and_a_gradient_penalty(shown):
  model, variables, image_bhwc = (shown[name] for name in ("model", "variables", "image_bhwc"))
  step = 1e-2
  logits, moved = (model.apply(variables, image_bhwc + s) for s in (-step, step))
  slope = (moved - logits) / (2 * step)
  np.testing.assert_allclose(shown["logits_tangent_bk"], slope, rtol=2e-2, atol=2e-3)
  moved_params = jax.tree.map(lambda p, g: p + 1e-3 * g, shown["params"], shown["penalty_gradient"])
  penalty, moved = (
    shown["gradient_penalty"](p, image_bhwc) for p in (shown["params"], moved_params)
  )
  expected = 1e-3 * sum((g**2).sum() for g in jax.tree.leaves(shown["penalty_gradient"]))
  np.testing.assert_allclose(moved - penalty, expected, rtol=0.1)


def test_devices_change_nothing(shown):
  model, variables, image_bhwc = (shown[name] for name in ("model", "variables", "image_bhwc"))
  assert_close(shown["sharded_logits_bk"], model.apply(variables, image_bhwc), 1e-5)

  def loss(params):
    return (model.apply({**variables, "params": params}, image_bhwc) ** 2).mean()

  assert_close(shown["sharded_gradient"], jax.grad(loss)(shown["params"]), 1e-5)


def test_each_model_of_an_ensemble_is_itself(shown):
  for i, key in enumerate(jax.random.split(jax.random.key(0), 3)):
    variables = shown["model"].init(key, shown["image_bhwc"])
    expected = shown["model"].apply(variables, shown["image_bhwc"])
    np.testing.assert_allclose(shown["logits_ebk"][i], expected, rtol=1e-5, atol=1e-6)


def test_features_and_a_probe_on_them(shown):
  pooled = np.asarray(shown["feature_bhwf"]).mean((1, 2))
  np.testing.assert_allclose(shown["pooled_bf"], pooled, rtol=1e-5, atol=1e-6)
  # With a head of zeros, every class has probability 1/5.
  error = (0.2 - np.eye(5)[[0, 1, 2, 3]]) / 4
  np.testing.assert_allclose(shown["head_gradient"], pooled.T @ error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (2, 48, 64, 3), (3, 8, 12, 13), (1, 4, 4, 1)])
def test_other_sizes_and_channels_are_flaxs(shape):
  settings = dict(dim=16, depth=2, kernel_size=3, patch_size=4, num_classes=10)
  image_bhwc = jax.random.normal(jax.random.key(0), shape)
  oracle = PlainConvMixer(**settings)
  small = (1, 4, 4, shape[-1])  # initialized at another size
  variables = trained_alike(ConvMixer(**settings).init(jax.random.key(0), jnp.zeros(small)))
  found = ConvMixer(**settings).apply(variables, image_bhwc)
  np.testing.assert_allclose(found, oracle.apply(variables, image_bhwc), rtol=1e-4, atol=1e-4)


def test_shapes_and_dtypes_are_as_the_page_says(shown):
  assert shown["feature_bhwf"].shape == (4, 8, 8, 16)
  assert shown["logits_ebk"].shape == (3, 4, 10)
  assert shown["satellite_variables"]["params"]["stem"]["kernel"].shape == (4, 4, 13, 16)
  assert shown["bf16_logits_bk"].dtype == jnp.float32
  exact = shown["model"].apply(shown["variables"], shown["image_bhwc"])
  difference = np.abs(shown["bf16_logits_bk"] - exact).max()
  assert 1e-5 < difference < 0.05  # lower precision, but not too low


def test_nnx_gives_the_same_logits_and_moves_the_same_statistics(shown):
  model, nnx_model, image_bhwc = shown["model"], shown["nnx_model"], shown["image_bhwc"]
  variables = {"params": shown["params"], "batch_stats": shown["batch_stats"]}
  expected, updated = model.apply(variables, image_bhwc, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(nnx_model(image_bhwc), model.apply(variables, image_bhwc), rtol=1e-6)
  found = nnx_model(image_bhwc, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  stem = nnx.state(nnx_model, nnx.BatchStat)["stem_norm"]
  np.testing.assert_allclose(
    stem["mean"].get_value(), updated["batch_stats"]["stem_norm"]["mean"], rtol=1e-6
  )


def tweet():
  """The page's short ConvMixer; not marked as Python there, so that formatters leave it alone."""
  text = (ROOT / "docs" / "use.md").read_text()
  return re.search(r"```\n(from flax\.linen import \*\n.*?)\n```", text, re.DOTALL)[1]


def as_tweets(variables, depth):
  """Renames our variables to the names that Flax gives the short model's layers."""
  layers = ["stem"]
  for i in range(depth):
    layers += [f"blocks_{i}/depthwise", f"blocks_{i}/pointwise"]

  def at(tree, path):
    for name in path.split("/"):
      tree = tree[name]
    return tree

  params, stats = variables["params"], variables["batch_stats"]
  renamed = {"params": {"Dense_0": params["head"]}, "batch_stats": {}}
  for number, layer in enumerate(layers):
    renamed["params"][f"Conv_{number}"] = at(params, layer)
    renamed["params"][f"BatchNorm_{number}"] = at(params, f"{layer}_norm")
    renamed["batch_stats"][f"BatchNorm_{number}"] = at(stats, f"{layer}_norm")
  return renamed


@pytest.mark.parametrize("kernel_size", [3, 4])
def test_the_convmixer_that_fits_in_a_tweet_is_ours(kernel_size):
  code = tweet()
  assert len(code) <= 280
  names = {}
  exec(code, names)
  image_bhwc = jax.random.normal(jax.random.key(1), (4, 12, 12, 3))
  model = ConvMixer(8, 2, kernel_size, 2, 5)
  variables = trained_alike(model.init(jax.random.key(0), image_bhwc))
  short = names["ConvMixer"](8, 2, kernel_size, 2, 5)
  theirs = as_tweets(variables, depth=2)
  assert jax.tree.structure(short.init(jax.random.key(0), image_bhwc)) == jax.tree.structure(theirs)
  np.testing.assert_allclose(
    short.apply(theirs, image_bhwc), model.apply(variables, image_bhwc), rtol=1e-4, atol=1e-4
  )
  found, _ = short.apply(theirs, image_bhwc, 1, mutable=["batch_stats"])
  expected, _ = model.apply(variables, image_bhwc, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
