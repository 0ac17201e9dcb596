import jax
import numpy as np
import pytest
from scipy import stats

from convmixer_jax.augment import rectangle

KEY = jax.random.key(0)


def by_the_rule(random, h, w, area, ratio, largest):
  """timm's loop over ten tries, for a single image."""
  for _ in range(10):
    pixels = random.uniform(*area) * h * w
    quotient = np.exp(random.uniform(*np.log(ratio)))
    height, width = round(np.sqrt(pixels * quotient)), round(np.sqrt(pixels / quotient))
    if 0 < height <= largest[0] and 0 < width <= largest[1]:
      top, left = random.randint(0, h - height + 1), random.randint(0, w - width + 1)
      return top, left, height, width
  return None


@pytest.mark.parametrize(
  ("h", "w", "area", "ratio", "largest"),
  [
    (32, 32, (0.08, 1.0), (3 / 4, 4 / 3), (32, 32)),
    (24, 40, (0.75, 1.0), (3 / 4, 4 / 3), (24, 40)),
    (32, 32, (0.02, 1 / 3), (0.3, 1 / 0.3), (31, 31)),
  ],
)
def test_distribution_is_that_of_the_rule(h, w, area, ratio, largest):
  n = 4000
  fallback = (h, min(w, round(h * 4 / 3)))
  ours = rectangle.draw(KEY, (n, h, w), area=area, ratio=ratio, largest=largest, fallback=fallback)
  random = np.random.RandomState(0)
  centred = ((h - fallback[0]) // 2, (w - fallback[1]) // 2, *fallback)
  theirs = [by_the_rule(random, h, w, area, ratio, largest) or centred for _ in range(n)]
  for name, a, b in zip(
    ("top", "left", "height", "width"), ours, zip(*theirs, strict=True), strict=True
  ):
    assert stats.ks_2samp(np.asarray(a), np.array(b)).pvalue > 1e-3, name
  top, left, height, width = map(np.asarray, ours)
  assert (top >= 0).all()
  assert (left >= 0).all()
  assert (top + height <= h).all()
  assert (left + width <= w).all()


def test_sides_of_the_cifar_crop():
  """For areas of 3/4 to 1, sides 28 to 32 have probabilities 17, 23, 23, 24 and 12 %."""
  n = 20000
  _, _, height, width = rectangle.draw(
    KEY, (n, 32, 32), area=(0.75, 1.0), ratio=(1.0, 1.0), largest=(32, 32), fallback=(32, 32)
  )
  np.testing.assert_array_equal(height, width)
  edges = np.array([27.7128, 28.5, 29.5, 30.5, 31.5, 32]) ** 2 / 1024
  expected = n * np.diff(edges) / 0.25
  np.testing.assert_allclose(expected / n, [0.17, 0.23, 0.23, 0.24, 0.12], atol=0.01)
  counts = np.bincount(np.asarray(height), minlength=33)[28:]
  assert stats.chisquare(counts, expected * n / expected.sum()).pvalue > 1e-3


def test_fallback_lies_in_the_centre():
  top, left, height, width = rectangle.draw(
    KEY, (3, 10, 21), area=(1.0, 1.0), ratio=(1.0, 1.0), largest=(10, 21), fallback=(10, 13)
  )
  np.testing.assert_array_equal([top, left, height, width], np.repeat([[0], [4], [10], [13]], 3, 1))
