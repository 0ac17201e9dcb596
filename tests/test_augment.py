import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import mesh as mesh_lib
from convmixer_jax.augment import augment, normalize, random_crop, random_flip

KEY = jax.random.key(0)
IMAGE = np.random.RandomState(0).randint(0, 256, (64, 6, 5, 3)).astype(np.uint8)


def test_normalize():
  mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
  expected = (IMAGE / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(normalize(IMAGE, mean, std), expected, rtol=1e-5, atol=1e-5)


def test_flip_mirrors_about_half_of_the_images():
  flipped = np.asarray(random_flip(KEY, IMAGE))
  is_same = (flipped == IMAGE).all((1, 2, 3))
  is_mirrored = (flipped == IMAGE[:, :, ::-1]).all((1, 2, 3))
  assert (is_same ^ is_mirrored).all()
  assert 16 < is_mirrored.sum() < 48  # 1e-4 outside for a fair coin


def test_crop_moves_by_every_offset():
  padding = 2
  cropped = np.asarray(random_crop(KEY, IMAGE, padding))
  padded = np.pad(IMAGE, ((0, 0), (2, 2), (2, 2), (0, 0)))
  offsets = set()
  for image, source in zip(cropped, padded, strict=True):
    windows = [
      (y, x) for y in range(5) for x in range(5) if (source[y : y + 6, x : x + 5] == image).all()
    ]
    assert len(windows) == 1
    offsets |= set(windows)
  assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(5))


def test_images_do_not_depend_on_the_number_of_devices():
  def images(devices):
    mesh = mesh_lib.make_mesh(devices)
    batch = jax.device_put(IMAGE, mesh_lib.sharded(mesh))
    settings = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "crop_padding": 1, "flip": True}
    return jax.jit(lambda key, image: augment(key, image, **settings))(KEY, batch)

  one, eight = images(jax.devices()[:1]), images(jax.devices())
  assert len(eight.sharding.device_set) == 8
  np.testing.assert_array_equal(one, eight)
  assert not jnp.array_equal(one, normalize(IMAGE, (0.5,) * 3, (0.2,) * 3))
