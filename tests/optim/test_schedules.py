import json
import pathlib

import jax
import numpy as np
import pytest

from convmixer_jax.optim.schedules import make_schedule, onecycle

# Learning rates at the end of each epoch in the log of the authors' CIFAR-10 script, run A.
AUTHORS_LOG = [0.005, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.045, 0.050,
               0.04525, 0.0405, 0.03575, 0.031, 0.02625, 0.0215, 0.01675, 0.012, 0.00725, 0.0025,
               0.002, 0.0015, 0.001, 0.0005, 0.0]  # fmt: skip


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


def test_an_epoch_ahead_the_last_epoch_has_no_learning_rate():
  """The Cooper Union study counts epochs from 1, so 200 epochs start at 1/80 of the peak."""
  schedule = onecycle(0.01, epochs=200, steps_per_epoch=10, first_epoch=1)
  np.testing.assert_allclose(schedule(-1), 0.01 / 80, rtol=1e-5)
  np.testing.assert_allclose(schedule(79 * 10 - 1), 0.01, rtol=1e-5)
  assert schedule(199 * 10 - 1) == 0
  assert schedule(200 * 10 - 1) == 0
  assert schedule(199 * 10 - 2) > 0


def test_slanted_triangle():
  """Rises from peak/32 in a tenth of the steps, then falls back."""
  schedule = make_schedule("slanted_triangle", peak=0.32, epochs=10, steps_per_epoch=10)
  found = [schedule(step) for step in (0, 5, 10, 55, 100)]
  np.testing.assert_allclose(found, [0.01, 0.165, 0.32, 0.165, 0.01], rtol=1e-5)


def test_constant():
  schedule = make_schedule("constant", peak=0.25, epochs=10, steps_per_epoch=10)
  assert schedule(0) == schedule(99) == 0.25


# Update numbers, from 1, and learning rates over the peak, for five of the authors' runs.
SAMPLES = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "onecycle.json").read_text())


@pytest.mark.parametrize("run", SAMPLES)
def test_onecycle_at_every_sample_point(run):
  epochs, steps_per_epoch = (int(word) for word in run.split() if word.isdecimal())
  schedule = jax.jit(onecycle(1.0, epochs, steps_per_epoch))
  assert len(SAMPLES[run]) == 21
  for update, multiplier in SAMPLES[run]:
    np.testing.assert_allclose(schedule(update - 1), multiplier, rtol=1e-5, atol=1e-7)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match=r"^schedule is 'step'; allowed: onecycle, cosine, "):
    make_schedule("step", peak=0.25, epochs=10, steps_per_epoch=10)
