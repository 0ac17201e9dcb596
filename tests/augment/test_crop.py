import jax
import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_sample_images

from convmixer_jax.augment import crop
from convmixer_jax.augment.crop import random_crop, random_resized_crop, resized_crop
from convmixer_jax.data import preprocess

KEY = jax.random.key(0)


def photos(size):
  """Eight square crops of real photographs, uint8 [8, size, size, 3]."""
  pictures = load_sample_images().images
  places = [(40, 60), (120, 300), (200, 200), (250, 450)]
  return np.stack([p[y : y + size, x : x + size] for p in pictures for y, x in places])


def test_crop_moves_by_every_offset():
  image = np.random.RandomState(0).randint(0, 256, (64, 6, 5, 3)).astype(np.uint8)
  cropped = np.asarray(random_crop(KEY, image, 2))
  padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))
  offsets = set()
  for one, source in zip(cropped, padded, strict=True):
    windows = [
      (y, x) for y in range(5) for x in range(5) if (source[y : y + 6, x : x + 5] == one).all()
    ]
    assert len(windows) == 1
    offsets |= set(windows)
  assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(5))


@pytest.mark.parametrize("is_bicubic", [False, True])
@pytest.mark.parametrize("size", [32, 96])
def test_resized_crops_are_pillows(size, is_bicubic):
  """Differs by at most one level where the exact sum is a half, which is common for bilinear."""
  image = photos(size)
  random = np.random.RandomState(1)
  for _ in range(4):
    sides = random.randint(size // 4, size + 1, (2, 8))
    corner = (random.uniform(size=(2, 8)) * (size - sides + 1)).astype(int)
    ours = resized_crop(image, (*corner, *sides), np.full(8, is_bicubic))
    kernel = PIL.Image.Resampling.BICUBIC if is_bicubic else PIL.Image.Resampling.BILINEAR
    for one, source, top, left, h, w in zip(ours, image, *corner, *sides, strict=True):
      cropped = PIL.Image.fromarray(source).crop((left, top, left + w, top + h))
      expected = np.asarray(cropped.resize((size, size), kernel), int)
      difference = np.abs(np.asarray(one, int) - expected)
      assert difference.max() <= 1
      assert (difference > 0).mean() < (1e-3 if is_bicubic else 0.03)


def test_a_whole_image_stays_as_it_is():
  image = photos(32)
  zeros, whole = np.zeros(8, int), np.full(8, 32)
  for is_bicubic in (False, True):
    found = resized_crop(image, (zeros, zeros, whole, whole), np.full(8, is_bicubic))
    np.testing.assert_array_equal(found, image)


def test_the_authors_scale_of_one_is_the_identity():
  """The authors' CIFAR-10 script with --scale=1.0 and a ratio of 1 does not crop."""
  image = photos(32)
  found = random_resized_crop(KEY, image, (1.0, 1.0), (1.0, 1.0), "bilinear")
  np.testing.assert_array_equal(found, image)


def test_interpolation_is_drawn_for_each_image():
  image = np.repeat(photos(32)[:1], 400, 0)
  settings = (KEY, image, (0.5, 0.5), (1.0, 1.0))
  bilinear, bicubic, either = (
    np.asarray(random_resized_crop(*settings, name)) for name in ("bilinear", "bicubic", "random")
  )
  is_bicubic = (either == bicubic).all((1, 2, 3))
  assert (is_bicubic ^ (either == bilinear).all((1, 2, 3))).all()
  assert 150 < is_bicubic.sum() < 250  # a fair coin fails with probability 6e-7


def test_an_unknown_interpolation_is_refused():
  assert list(crop.INTERPOLATIONS) == list(preprocess.INTERPOLATIONS)  # same as on the host
  image = np.zeros((1, 8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match=r"^interpolation is 'area'; allowed: random, bilinear, "):
    random_resized_crop(KEY, image, (0.5, 1.0), (1.0, 1.0), "area")
