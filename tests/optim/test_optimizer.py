import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convmixer_jax.optim.optimizer import clip_by_norm, make_optimizer
from convmixer_jax.optim.schedules import onecycle

# Ten steps of Keras's Adam and TensorFlow Addons' AdamW, see golden/make_keras_adam.py.
KERAS = np.load(pathlib.Path(__file__).parents[1] / "golden" / "keras_adam.npz")
KERAS_SETTINGS = {
  "adam": {"weight_decay": 0.0},
  "example": {"weight_decay": 1e-4, "decay_kind": "unscaled"},
  "study": {"weight_decay": 0.0},
}


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
  """Maximum distance from Keras's parameters after each golden step, over the peak rate."""
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
  """After 1, 2, 3 and 10 steps; with the usual epsilon, even the first is off by half a step."""
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
  """The weight shrinks by a factor of 1 - 1e-4 per step, for any learning rate."""
  settings = {"weight_decay": 1e-4, "decay": "all", "decay_kind": "unscaled"}
  params, gradient = {"w": jnp.full(2, 3.0)}, {"w": jnp.zeros(2)}
  for rate in (0.0, 1e-3):
    optimizer = make_optimizer(optax.constant_schedule(rate), **settings)
    np.testing.assert_allclose(one_update(optimizer, params, gradient)["w"], 3 - 3e-4, rtol=1e-6)
  # Adam's first step has the size of the learning rate.
  moved = one_update(optimizer, params, {"w": jnp.full(2, 0.5)})
  np.testing.assert_allclose(moved["w"], 3 - 3e-4 - 1e-3, rtol=1e-6)


def test_l2_decay_is_part_of_the_gradient_that_is_clipped():
  """Flux's chain: decay, clip each array, then Adam; so Adam sees no norms above 1."""
  settings = {"weight_decay": 0.5, "decay": "all", "decay_kind": "l2", "clip_norm": 1.0}
  params = {"a": jnp.array([6.0, 8.0]), "b": jnp.array([0.2])}
  gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.1])}
  optimizer = make_optimizer(optax.constant_schedule(0.1), **settings, clip_each=True, eps=1.0)
  after = one_update(optimizer, params, gradient)
  # a: [3, 4] + 0.5 * [6, 8] = [6, 8], clipped to [0.6, 0.8]; b: 0.1 + 0.1, not clipped.
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


@pytest.mark.parametrize("name", ["decay", "decay_kind"])
def test_an_unknown_decay_is_refused(name):
  settings = {"weight_decay": 0.1, "decay": "all", name: "al"}
  with pytest.raises(ValueError, match=f"^{name} is 'al'; allowed: a"):
    make_optimizer(0.1, **settings)
