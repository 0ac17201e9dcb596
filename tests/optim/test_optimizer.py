import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convmixer_jax.optim.optimizer import clip_by_norm, make_optimizer
from convmixer_jax.optim.schedules import make_schedule, onecycle

# Learning rates at the end of each epoch in the log of the authors' CIFAR-10 script, run A.
AUTHORS_LOG = [0.005, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.045, 0.050,
               0.04525, 0.0405, 0.03575, 0.031, 0.02625, 0.0215, 0.01675, 0.012, 0.00725, 0.0025,
               0.002, 0.0015, 0.001, 0.0005, 0.0]  # fmt: skip


# Ten steps of Keras's Adam and TensorFlow Addons' AdamW, see golden/make_keras_adam.py.
KERAS = np.load(pathlib.Path(__file__).parents[1] / "golden" / "keras_adam.npz")
KERAS_SETTINGS = {
  "adam": {"weight_decay": 0.0},
  "example": {"weight_decay": 1e-4, "decay_kind": "unscaled"},
  "study": {"weight_decay": 0.0},
}


def test_onecycle_is_the_authors():
  schedule = onecycle(0.05, epochs=25, steps_per_epoch=98)
  ours = [schedule(98 * (epoch + 1) - 1) for epoch in range(25)]
  np.testing.assert_allclose(ours, AUTHORS_LOG, rtol=2e-6, atol=1e-9)


def test_onecycle_of_the_imagenet_recipe():
  schedule = jax.jit(onecycle(0.01, epochs=150, steps_per_epoch=2001))
  np.testing.assert_allclose(schedule(0), 0.01 * 8.329169e-06, rtol=1e-6)
  np.testing.assert_allclose(schedule(60 * 2001 - 1), 0.01, rtol=1e-6)
  np.testing.assert_allclose(schedule(120 * 2001 - 1), 0.01 / 20, rtol=1e-5)
  assert schedule(150 * 2001 - 1) == 0


@pytest.mark.parametrize("epochs", [1, 2])
def test_onecycle_of_very_short_runs(epochs):
  """Knots at 0, 0, 0, 1 fall from peak/20; knots at 0, 0, 1, 2 from the peak."""
  schedule = onecycle(1.0, epochs, steps_per_epoch=10)
  expected = {1: 0.05 * 0.9, 2: 1 - 0.95 * 0.1}[epochs]
  np.testing.assert_allclose(schedule(0), expected, rtol=1e-6)
  np.testing.assert_allclose(schedule(10 * epochs - 1), 0, atol=1e-7)


def test_other_schedules():
  cosine = make_schedule("cosine", peak=0.4, epochs=10, steps_per_epoch=5, warmup_epochs=2)
  np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [0, 0.2, 0.4], rtol=1e-6)
  np.testing.assert_allclose(cosine(30), 0.2, rtol=1e-6)
  np.testing.assert_allclose(cosine(50), 0, atol=1e-8)
  ours = make_schedule("optax_onecycle", peak=0.4, epochs=10, steps_per_epoch=5)
  np.testing.assert_allclose([ours(0), ours(15)], [0.4 / 25, 0.4], rtol=1e-5)


@pytest.mark.parametrize(
  ("eps", "weight_decay", "expected"),
  [
    (1e-3, 2e-5, [0.9900988099009901, 0.9937366416831348, 0.9950930935178015]),
    (1e-8, 5e-3, [0.9899500009999999, 0.9935615385387988, 0.9948787669889443]),
  ],
)
def test_adamw_is_pytorchs(eps, weight_decay, expected):
  optimizer = make_optimizer(
    optax.constant_schedule(0.01), weight_decay=weight_decay, decay="all", eps=eps
  )
  params = {"w": jnp.ones((1, 1))}
  state = optimizer.init(params)
  for gradient, after in zip([0.1, -0.2, 0.05], expected, strict=True):
    updates, state = optimizer.update({"w": jnp.full((1, 1), gradient)}, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], [[after]], rtol=2e-7)


def keras_errors(run: str, **settings) -> np.ndarray:
  """Greatest distance of our parameters from Keras's after each golden step, over the peak rate."""
  peak = 0.01 if run == "study" else 1e-3
  schedule = optax.constant_schedule(peak)
  if run == "study":
    schedule = onecycle(peak, epochs=5, steps_per_epoch=2, first_epoch=1)
  optimizer = make_optimizer(schedule, decay="all", eps=1e-7, **KERAS_SETTINGS[run], **settings)
  params = {"w": jnp.asarray(KERAS["before"])}
  state, update, after = optimizer.init(params), jax.jit(optimizer.update), []
  for gradient in KERAS["gradients"]:
    updates, state = update({"w": jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
    after.append(params["w"])
  kept = np.stack(after)[KERAS["steps"] - 1]
  return np.abs(kept - KERAS[run]).max(1) / peak


@pytest.mark.parametrize("run", KERAS_SETTINGS)
def test_keras_adds_epsilon_before_the_bias_correction(run):
  """After 1, 2, 3 and 10 steps; with the usual epsilon the first one is half a step off already."""
  assert keras_errors(run, eps_hat=True).max() < 1e-4
  assert keras_errors(run, eps_hat=False).min() > 0.5


def test_both_epsilons_have_one_state():
  params = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
  states = [
    make_optimizer(lambda _: 0.1, weight_decay=0.1, decay="all", eps_hat=eps_hat).init(params)
    for eps_hat in (False, True)
  ]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_decay_of_kernels_alone():
  params = {
    "conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
  }
  optimizer = make_optimizer(optax.constant_schedule(0.1), weight_decay=0.5, decay="kernels")
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["conv"]["kernel"], -0.05, rtol=1e-6)
  assert not updates["conv"]["bias"].any()
  assert not updates["norm"]["scale"].any()


def test_clipping_is_pytorchs():
  clip = clip_by_norm(1.0)
  updates, _ = clip.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, clip.init(None))
  np.testing.assert_allclose(updates["a"], [0.599999880000024], rtol=1e-7)
  np.testing.assert_allclose(updates["b"], [0.799999840000032], rtol=1e-7)
  small, _ = clip.update({"a": jnp.array([0.3])}, clip.init(None))
  np.testing.assert_array_equal(small["a"], np.float32([0.3]))


def one_update(optimizer, params, gradient):
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  return optax.apply_updates(params, updates)


def test_decay_of_tensorflow_addons_is_not_scaled():
  """The weight loses 1e-4 of itself in each step, whatever the learning rate."""
  settings = {"weight_decay": 1e-4, "decay": "all", "decay_kind": "unscaled"}
  params, gradient = {"w": jnp.full(2, 3.0)}, {"w": jnp.zeros(2)}
  for rate in (0.0, 1e-3):
    optimizer = make_optimizer(optax.constant_schedule(rate), **settings)
    np.testing.assert_allclose(one_update(optimizer, params, gradient)["w"], 3 - 3e-4, rtol=1e-6)
  # Adam's first step is the learning rate.
  moved = one_update(optimizer, params, {"w": jnp.full(2, 0.5)})
  np.testing.assert_allclose(moved["w"], 3 - 3e-4 - 1e-3, rtol=1e-6)


def test_l2_decay_is_part_of_the_gradient_that_is_clipped():
  """Flux's chain: decay, then clipping of each array, then Adam; so Adam sees no sizes above 1."""
  settings = {"weight_decay": 0.5, "decay": "all", "decay_kind": "l2", "clip_norm": 1.0}
  params = {"a": jnp.array([6.0, 8.0]), "b": jnp.array([0.2])}
  gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.1])}
  optimizer = make_optimizer(optax.constant_schedule(0.1), **settings, clip_each=True, eps=1.0)
  after = one_update(optimizer, params, gradient)
  # a: [3, 4] + 0.5 * [6, 8] = [6, 8], clipped to [0.6, 0.8]; b: 0.1 + 0.1, left alone.
  clipped = {"a": np.array([0.6, 0.8]), "b": np.array([0.2])}
  for name, g in clipped.items():
    np.testing.assert_allclose(after[name], params[name] - 0.1 * g / (g + 1.0), rtol=1e-6)


def test_clipping_each_array_leaves_small_ones_and_zeros_alone():
  clip = clip_by_norm(1.0, each=True)
  gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3]), "c": jnp.zeros(3)}
  updates, _ = clip.update(gradient, clip.init(None))
  np.testing.assert_allclose(updates["a"], [0.6, 0.8], rtol=1e-6)
  np.testing.assert_array_equal(updates["b"], np.float32([0.3]))
  assert not updates["c"].any()


def test_an_epoch_ahead_the_last_epoch_has_no_learning_rate():
  """The Cooper Union study counts epochs from 1: 1/80 of the peak at the start for 200 epochs."""
  schedule = onecycle(0.01, epochs=200, steps_per_epoch=10, first_epoch=1)
  np.testing.assert_allclose(schedule(-1), 0.01 / 80, rtol=1e-5)
  np.testing.assert_allclose(schedule(79 * 10 - 1), 0.01, rtol=1e-5)
  assert schedule(199 * 10 - 1) == 0
  assert schedule(200 * 10 - 1) == 0
  assert schedule(199 * 10 - 2) > 0


def test_slanted_triangle():
  """A tenth of the steps up from peak/32, and down to it again."""
  schedule = make_schedule("slanted_triangle", peak=0.32, epochs=10, steps_per_epoch=10)
  found = [schedule(step) for step in (0, 5, 10, 55, 100)]
  np.testing.assert_allclose(found, [0.01, 0.165, 0.32, 0.165, 0.01], rtol=1e-5)


def test_constant():
  schedule = make_schedule("constant", peak=0.25, epochs=10, steps_per_epoch=10)
  assert schedule(0) == schedule(99) == 0.25


# Numbers of updates, from 1, and the authors' learning rates over the peak, for five of their runs.
SAMPLES = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "onecycle.json").read_text())


@pytest.mark.parametrize("run", SAMPLES)
def test_onecycle_at_every_sample_point(run):
  epochs, steps_per_epoch = (int(word) for word in run.split() if word.isdecimal())
  schedule = jax.jit(onecycle(1.0, epochs, steps_per_epoch))
  assert len(SAMPLES[run]) == 21
  for update, multiplier in SAMPLES[run]:
    np.testing.assert_allclose(schedule(update - 1), multiplier, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["decay", "decay_kind"])
def test_an_unknown_decay_is_refused(name):
  settings = {"weight_decay": 0.1, "decay": "all", name: "al"}
  with pytest.raises(ValueError, match=f"^{name} is 'al'; allowed: a"):
    make_optimizer(0.1, **settings)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match=r"^schedule is 'step'; allowed: onecycle, cosine, "):
    make_schedule("step", peak=0.25, epochs=10, steps_per_epoch=10)
