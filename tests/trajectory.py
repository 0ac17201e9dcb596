"""The training steps of `golden/make_trajectory.py`, taken by our train step."""

import functools
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import ConvMixer
from convmixer_jax.augment import Augmentation
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.optim.optimizer import make_optimizer
from convmixer_jax.optim.schedules import make_schedule
from convmixer_jax.parallel.sharding import make_mesh
from convmixer_jax.training.step import train_step

EPOCHS, STEPS_PER_EPOCH, BATCH, CLASSES = 5, 4, 16, 7
RECIPES = {
  "imagenet": {
    "activation": "gelu",
    "peak": 0.03,
    "label_smoothing": 0.1,
    "optimizer": {"weight_decay": 0.5, "decay": "kernels", "eps": 1e-3, "clip_norm": 0.7},
  },
  "cifar": {
    "activation": "relu",
    "peak": 0.05,
    "label_smoothing": 0.0,
    "optimizer": {"weight_decay": 0.05, "decay": "all"},
  },
}


def load(name: str) -> dict:
  """Images and labels, PyTorch's losses and gradient norms, and the variables before and after."""
  arrays = np.load(pathlib.Path(__file__).parent / "golden" / f"trajectory_{name}.npz")
  return traverse_util.unflatten_dict({tuple(key.split("/")): arrays[key] for key in arrays})


def run(name: str) -> tuple[np.ndarray, np.ndarray, dict]:
  """Our losses and gradient norms, float64 [20], and variables after the steps."""
  golden, recipe = load(name), RECIPES[name]
  schedule = make_schedule(
    "onecycle", peak=recipe["peak"], epochs=EPOCHS, steps_per_epoch=STEPS_PER_EPOCH
  )
  optimizer = make_optimizer(schedule, **recipe["optimizer"])
  augmentation = Augmentation(
    (0.5,) * 3, (64 / 255,) * 3, CLASSES, flip=False, label_smoothing=recipe["label_smoothing"]
  )
  mesh = make_mesh(jax.devices()[:1])
  step = jax.jit(
    functools.partial(
      train_step,
      model=ConvMixer(12, 2, 5, 2, CLASSES, recipe["activation"], mesh=mesh),
      optimizer=optimizer,
      schedule=schedule,
      augmentation=augmentation,
    )
  )
  variables = jax.tree.map(jnp.asarray, golden["before"])
  params, opt_state = variables["params"], optimizer.init(variables["params"])
  state = TrainState(
    jnp.zeros((), int), params, variables["batch_stats"], opt_state, jax.random.key(0)
  )
  losses, norms = [], []
  for number in range(EPOCHS * STEPS_PER_EPOCH):
    rows = slice(number % STEPS_PER_EPOCH * BATCH, (number % STEPS_PER_EPOCH + 1) * BATCH)
    batch = {"image": golden["image"][rows], "label": golden["label"][rows]}
    state, values = step(state, {**batch, "mask": np.ones(BATCH, np.float32)})
    losses.append(float(values["loss"]) / BATCH)
    norms.append(float(values["grad_norm"]))
  return np.array(losses), np.array(norms), state.variables()
