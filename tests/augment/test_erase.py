import jax
import numpy as np
import pytest
from scipy import stats

from convmixer_jax.augment.erase import random_erase

KEY = jax.random.key(0)


@pytest.mark.parametrize("mode", ["pixel", "constant"])
def test_a_rectangle_of_a_quarter_of_the_images_is_overwritten(mode):
  n = 4000
  image = np.full((n, 16, 24, 3), 7, np.float32)
  erased = np.asarray(random_erase(KEY, image, 0.25, mode))
  is_erased = (erased != 7).all(-1)
  assert (is_erased == (erased != 7).any(-1)).all()  # all channels of a pixel
  chosen = is_erased.any((1, 2))
  assert stats.binomtest(int(chosen.sum()), n, 0.25).pvalue > 1e-3
  rows, columns = is_erased.any(2), is_erased.any(1)
  assert (is_erased == rows[:, :, None] & columns[:, None]).all()  # a rectangle
  assert max(rows.sum(1)) < 16
  assert max(columns.sum(1)) < 24
  # 17.6 % of the pixels at 224 px; rounding and limits have an effect on this small image.
  assert 0.15 < is_erased[chosen].mean() < 0.19
  values = erased[is_erased]
  if mode == "constant":
    assert not values.any()
  else:
    assert stats.kstest(values.ravel()[:5000], "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.02  # independent noise per channel


def test_probability_of_one_and_none():
  image = np.ones((200, 8, 8, 1), np.float32)
  assert (np.asarray(random_erase(KEY, image, 1.0, "constant")) == 0).any((1, 2, 3)).all()
  np.testing.assert_array_equal(random_erase(KEY, image, 0.0, "constant"), image)


def test_an_unknown_mode_is_refused():
  with pytest.raises(ValueError, match=r"^erase_mode is 'noise'; allowed: pixel, constant$"):
    random_erase(KEY, np.zeros((1, 8, 8, 3), np.float32), 0.25, "noise")
