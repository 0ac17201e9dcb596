import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from convmixer_jax.augment.mix import blend, box, mix, smoothed

KEY = jax.random.key(0)


@pytest.mark.parametrize(("classes", "on", "off"), [(1000, 0.9001, 0.0001), (10, 0.91, 0.01)])
def test_smoothed_labels(classes, on, off):
  target = np.asarray(smoothed(np.int32([3]), classes, 0.1))[0]
  np.testing.assert_allclose(target[3], on, rtol=1e-5)
  np.testing.assert_allclose(np.delete(target, 3), off, rtol=1e-5)


# height, width, ratio, centre, rows and columns of the box, and the resulting ratio.
BOXES = [
  (224, 224, 0.3, (112, 112), (19, 205), (19, 205), 0.31050701530612246),
  (224, 224, 0.5, (10, 200), (0, 89), (121, 224), 0.8173030931122449),
  (32, 32, 0.6, (16, 16), (6, 26), (6, 26), 0.609375),
  (32, 32, 0.999, (5, 5), (5, 5), (5, 5), 1.0),
]


@pytest.mark.parametrize(("h", "w", "ratio", "centre", "rows", "columns", "corrected"), BOXES)
def test_boxes_are_timms(h, w, ratio, centre, rows, columns, corrected):
  inside, share = box(ratio, *centre, h, w)
  expected = np.zeros((h, w), bool)
  expected[slice(*rows), slice(*columns)] = True
  np.testing.assert_array_equal(inside, expected)
  np.testing.assert_allclose(share, corrected, rtol=1e-6)


def test_blending_rounds_half_to_even():
  image = np.uint8([1, 2, 4, 255]).reshape(1, 4, 1, 1, 1)  # partners: 255, 4, 2, 1
  half = jnp.full((1, 1, 1, 1, 1), 0.5)
  np.testing.assert_array_equal(blend(image, half).ravel(), [128, 3, 3, 128])
  np.testing.assert_array_equal(blend(image[:, 1:3] + 1, half).ravel(), [4, 4])
  np.testing.assert_array_equal(
    blend(np.uint8([1, 2]).reshape(1, 2, 1, 1, 1), half).ravel(), [2, 2]
  )


def mixed(image, label, **settings):
  settings = {"mixup_alpha": 0.5, "cutmix_alpha": 0.5, "group_size": None} | settings
  return map(np.asarray, mix(KEY, image, smoothed(label, 10, 0.1), **settings))


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)], ids=str)
def test_images_and_targets_are_mixed_in_one_ratio(alphas):
  """Constant images: their mean gives the expected ratio of the targets."""
  groups, size = 50, 4
  label = np.tile(np.int32([0, 1, 2, 3]), groups)
  image = np.broadcast_to(np.uint8([0, 40, 140, 240])[label][:, None, None, None], (200, 16, 12, 3))
  found, target = mixed(
    image, label, mixup_alpha=alphas[0], cutmix_alpha=alphas[1], group_size=size
  )
  np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
  # The share of its partner (the last image, with level 240) in the first image of each group.
  partner_share = found[::size].astype(float).mean((1, 2, 3)) / 240
  own = target[::size]
  np.testing.assert_allclose((own[:, 3] - 0.01) / 0.9, partner_share, atol=0.003)
  np.testing.assert_allclose((own[:, 0] - 0.01) / 0.9, 1 - partner_share, atol=0.003)
  # All images of a group have the same ratio; the second's partner is the third.
  np.testing.assert_allclose(target[1::size, 2], own[:, 3], rtol=1e-5)
  np.testing.assert_allclose(target[3::size, 0], own[:, 3], rtol=1e-5)
  levels = [len(np.unique(one)) for one in found[::size]]
  is_blended = np.array(
    [count == 1 and 0 < one.max() < 240 for count, one in zip(levels, found[::size], strict=True)]
  )
  assert {(0.5, 0.0): is_blended.mean() > 0.8, (0.0, 0.5): not is_blended.any(),
          (0.5, 0.5): 0.2 < is_blended.mean() < 0.8}[alphas]  # fmt: skip


def test_ratios_come_from_the_beta_distribution():
  """Mixup with groups of one pair: the darker image's target is the ratio."""
  label = np.tile(np.int32([0, 1]), 2000)
  image = np.zeros((4000, 1, 1, 1), np.uint8)
  _, target = mixed(image, label, cutmix_alpha=0.0, group_size=2)
  ratio = (target[::2, 0] - 0.01) / 0.9
  assert stats.kstest(np.clip(ratio, 0, 1), stats.beta(0.5, 0.5).cdf).pvalue > 1e-3
  # 41 % of the draws are below 0.1 or above 0.9.
  assert stats.binomtest(int(((ratio < 0.1) | (ratio > 0.9)).sum()), 2000, 0.41).pvalue > 1e-3


def test_none_is_one_group():
  label = np.arange(8, dtype=np.int32)
  image = np.random.RandomState(0).randint(0, 256, (8, 6, 6, 3)).astype(np.uint8)
  whole, in_one = (list(mixed(image, label, group_size=size)) for size in (None, 8))
  for a, b in zip(whole, in_one, strict=True):
    np.testing.assert_array_equal(a, b)
