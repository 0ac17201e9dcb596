import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_sample_images

from convmixer_jax.augment.affine import affine, random_affine

PHOTO = load_sample_images().images[1][100:140, 200:232]


@pytest.mark.parametrize(
  ("degrees", "moved", "scale"),
  [(0, (0, 0), (1, 1)), (10, (0, 0), (1, 1)), (-7, (3.2, -1.5), (0.9, 1.1)), (90, (1, 2), (1, 1))],
)
def test_it_is_what_keras_asks_of_scipy(degrees, moved, scale):
  """rotation @ shift @ zoom about the centre; `apply_affine_transform`, order 1, mode nearest."""
  cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
  rotation = np.array([[cos, sin], [-sin, cos]])
  centre = (np.array(PHOTO.shape[:2]) - 1) / 2
  matrix = rotation @ np.diag(scale)
  offset = centre + rotation @ moved - matrix @ centre
  expected = np.stack(
    [
      ndimage.affine_transform(PHOTO[..., c].astype(float), matrix, offset, order=1, mode="nearest")
      for c in range(3)
    ],
    -1,
  )
  found = affine(PHOTO, jnp.deg2rad(degrees), jnp.array(moved, float), jnp.array(scale, float))
  difference = np.abs(np.asarray(found, float) - expected)
  assert difference.max() <= 0.51  # rounding


def test_draws_span_their_ranges():
  """Measures shift and zoom with a bright row and a bright column, far from the border."""
  key, n = jax.random.key(0), 300
  image = np.zeros((n, 41, 41, 1), np.uint8)
  image[:, 20] = 255
  rows = np.asarray(random_affine(key, image, 0.0, 0.1, 0.0))[:, :, 20, 0].argmax(1) - 20
  assert (rows.min(), rows.max()) == (-4, 4)
  image[:] = 0
  image[:, 10] = image[:, 30] = 255
  columns = np.asarray(random_affine(key, image, 0.0, 0.0, 0.1))[:, :, 20, 0].astype(float)
  place = np.arange(41)
  distance = (columns[:, 21:] * place[21:]).sum(1) / columns[:, 21:].sum(1) - 20
  assert 9.0 <= distance.min() < 9.2
  assert 10.9 < distance.max() <= 11.2
