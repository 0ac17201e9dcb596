import dataclasses
import random

import jax
import numpy as np
import PIL.Image
import pytest
import scipy.stats

from convmixer_jax.augment import each as each_lib
from convmixer_jax.augment import rand_augment as lib
from convmixer_jax.augment.op import Interpolation, Op
from convmixer_jax.augment.policy import parse
from convmixer_jax.parallel import sharding
from tests import pillow_augment

TIMM = "rand-m9-mstd0.5-inc1"
TORCHVISION = "torchvision-n2-m12"
FILL = (124, 116, 104)
KEY = jax.random.key(0)


def batch_of(photos, count):
  return np.resize(photos, (count, *photos.shape[1:]))


@pytest.mark.parametrize("channels", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", [TIMM, pytest.param(TORCHVISION, marks=pytest.mark.slow)])
def test_each_layer_is_pillows(photos, text, channels):
  policy, images = parse(text), batch_of(photos[..., :channels], 96)
  one_layer = dataclasses.replace(policy, layers=1)
  apply = jax.jit(lambda images, draws: lib.apply(images, draws, one_layer, FILL[:channels]))
  draws = lib.draw(KEY, len(images), policy)
  both = lib.apply(images, draws, policy, FILL[:channels])
  for layer in range(policy.layers):
    of_layer = lib.Draws(*(array[:, layer : layer + 1] for array in draws))
    expected = pillow_augment.replay(images, of_layer, one_layer, FILL[:channels])
    images = np.asarray(apply(images, of_layer))
    difference = np.abs(images.astype(int) - expected)
    assert (difference > 1).mean() <= 1e-4  # ties between nearest neighbours
    assert (difference > 0).mean() <= 1e-3
  np.testing.assert_array_equal(images, both)


def test_draws_of_the_imagenet_recipe():
  """With another key, each check would fail with probability 1e-4."""
  policy = parse(TIMM)
  draws = lib.Draws(*(np.asarray(array) for array in lib.draw(KEY, 50_000, policy)))
  count = draws.op_bl.size

  def agrees(observed, probabilities):
    assert sum(observed) == count
    return scipy.stats.chisquare(observed, count * np.array(probabilities)).pvalue > 1e-4

  assert agrees([(draws.op_bl == op).sum() for op in policy.ops], [1 / 15] * 15)
  for coin in (
    draws.is_applied_bl,
    draws.sign_bl == 1,
    draws.interpolation_bl == Interpolation.BICUBIC,
  ):
    assert agrees([coin.sum(), count - coin.sum()], [0.5, 0.5])
  assert set(np.unique(draws.sign_bl)) == {-1, 1}
  assert set(np.unique(draws.interpolation_bl)) == set(policy.interpolations)

  edges = np.array([-np.inf, 7.5, 8, 8.5, 8.8, 9, 9.2, 9.5, 9.9])
  below = scipy.stats.norm(9, 0.5).cdf([*edges, 10])
  histogram, _ = np.histogram(draws.magnitude_bl, [*edges, 10 - 1e-6, np.inf])
  assert agrees(histogram, [*np.diff(below), 1 - below[-1]])
  assert draws.magnitude_bl.max() == 10
  bits = policy.argument(np.full_like(draws.op_bl, Op.POSTERIZE), draws.magnitude_bl, 1, 8, 8)
  of_bits = scipy.stats.norm(9, 0.5).cdf([7.5, 10])
  observed = [(bits == 2).sum(), (bits == 1).sum(), (bits == 0).sum()]
  assert agrees(observed, [of_bits[0], of_bits[1] - of_bits[0], 1 - of_bits[1]])
  np.testing.assert_allclose(np.array(observed) / count, [0.0014, 0.976, 0.0227], atol=2e-3)


def test_draws_are_independent():
  """Independent of the other layer and of each other."""
  draws = lib.Draws(*(np.asarray(array) for array in lib.draw(KEY, 50_000, parse(TIMM))))
  low = draws.magnitude_bl < 9
  pairs = [(array[:, 0], array[:, 1]) for array in (*draws[:2], low, *draws[3:])]
  flat = [array.ravel() for array in (*draws[:2], low, *draws[3:])]
  pairs += [(a, b) for i, a in enumerate(flat) for b in flat[:i]]
  for a, b in pairs:
    table = scipy.stats.contingency.crosstab(a, b).count
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_draws_of_torchvision():
  draws = lib.draw(KEY, 20_000, parse(TORCHVISION))
  assert draws.is_applied_bl.all()
  np.testing.assert_array_equal(draws.magnitude_bl, 12)
  np.testing.assert_array_equal(draws.interpolation_bl, Interpolation.NEAREST)
  counts = [(draws.op_bl == op).sum() for op in parse(TORCHVISION).ops]
  assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_even_noise():
  magnitude = lib.draw(KEY, 20_000, parse("rand-m8-mstd101")).magnitude_bl
  assert scipy.stats.kstest(np.ravel(magnitude), scipy.stats.uniform(0, 8).cdf).pvalue > 1e-4


def test_no_op_is_applied_at_probability_0(photos):
  policy = parse("rand-m9-p0")
  np.testing.assert_array_equal(lib.rand_augment(KEY, photos, policy, FILL), photos)


@pytest.mark.parametrize("text", [pytest.param(TIMM, marks=pytest.mark.slow), TORCHVISION])
def test_bits_do_not_depend_on_the_number_of_devices(photos, text):
  policy, images = parse(text), batch_of(photos, 64)

  def run(devices):
    mesh = sharding.make_mesh(devices)
    batch = jax.device_put(images, sharding.batch_sharding(mesh))
    augment = jax.jit(lambda key, images: lib.rand_augment(key, images, policy, FILL, mesh))
    program = augment.lower(KEY, batch).compile().as_text()
    assert "all-" not in program
    assert "collective" not in program
    return augment(KEY, batch)

  one, eight = run(jax.devices()[:1]), run(jax.devices())
  assert len(eight.sharding.device_set) == 8
  np.testing.assert_array_equal(one, eight)
  assert (np.asarray(one) != images).any((1, 2, 3)).mean() > 0.6


@pytest.mark.slow
def test_bits_do_not_depend_on_the_platforms_way(photos, monkeypatch):
  """GPUs take all images at once, CPUs and TPUs one by one."""
  policy, images = parse(TIMM), batch_of(photos, 48)

  def run():
    function = jax.jit(lambda images: lib.rand_augment(KEY, images, policy, FILL))
    return function(images), function.lower(images).compile().as_text().count(" conditional(")

  in_turn, branches = run()
  assert branches == 2
  monkeypatch.setattr(each_lib, "one_by_one", each_lib.all_at_once)
  at_once, branches = run()
  assert branches == 0
  np.testing.assert_array_equal(in_turn, at_once)


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_others(photos):
  policy, images = parse(TIMM), batch_of(photos, 32)
  others = images[:, ::-1].copy()
  others[7] = images[7]
  augment = jax.jit(lambda images: lib.rand_augment(jax.random.key(2), images, policy, FILL))
  np.testing.assert_array_equal(augment(images)[7], augment(others)[7])
  assert (augment(images)[7] != images[7]).any()


@pytest.mark.slow
@pytest.mark.parametrize("text", [TIMM, TORCHVISION])
def test_the_host_transform_changes_images_as_much(photos, text):
  """Includes the random parts: compares the share of changed images and the mean change."""
  images, rng = batch_of(photos, 400), random.Random(0)
  device = np.asarray(lib.rand_augment(KEY, images, parse(text), (0, 0, 0)))
  host = []
  for image in images:
    image = PIL.Image.fromarray(image)
    if text == TIMM:
      host.append(np.asarray(pillow_augment.timm_rand_augment(image, rng, fill=(0, 0, 0))))
    else:
      host.append(np.asarray(pillow_augment.torchvision_rand_augment(image, 2, 12, rng)))
  figures = []
  for results in (device, np.stack(host)):
    change = np.abs(results.astype(float) - images).mean((1, 2, 3))
    figures.append(np.stack([change > 0, change]))
  error = np.sqrt(sum(f.var(1) for f in figures) / len(images))
  assert (np.abs(figures[0].mean(1) - figures[1].mean(1)) < 4 * error).all()
