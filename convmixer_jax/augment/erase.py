"""Random erasing: overwrites a rectangle of an image."""

import jax
import jax.numpy as jnp

from convmixer_jax.augment import rectangle
from convmixer_jax.errors import check_name


def _zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  del key
  return jnp.zeros(shape)


# Range of the rectangle's area over the image's, range of its height over its width, and its fill.
ERASE_MODES = {
  "pixel": ((0.02, 1 / 3), (0.3, 1 / 0.3), jax.random.normal),
  "constant": ((0.02, 0.33), (0.3, 3.3), _zeros),
}


def random_erase(key: jax.Array, image_bhwc: jax.Array, probability: float, mode: str) -> jax.Array:
  """Erases a random rectangle in each image with the given probability.

  The rectangle is smaller than the image in both dimensions.

  Args:
    key: random key of this step.
    image_bhwc: float32, normalised.
    probability: applied independently to each image.
    mode: "pixel": standard normal noise per pixel and channel, as in timm (`random_erasing.py`);
      "constant": 0, the dataset's mean, as in torchvision.

  Raises:
    ValueError: if `mode` is unknown.
  """
  check_name("erase_mode", mode, ERASE_MODES)
  area, ratio, fill = ERASE_MODES[mode]
  b, h, w, _ = image_bhwc.shape
  do_key, box_key, noise_key = jax.random.split(key, 3)
  top_b, left_b, height_b, width_b = rectangle.draw(
    box_key, (b, h, w), area=area, ratio=ratio, largest=(h - 1, w - 1), fallback=(0, 0)
  )
  inside_bhw = _within(top_b, height_b, (b, h, w), 1) & _within(left_b, width_b, (b, h, w), 2)
  is_erased_b = jax.random.bernoulli(do_key, probability, (b,))
  inside_bhw1 = (inside_bhw & is_erased_b[:, None, None])[..., None]
  return jnp.where(inside_bhw1, fill(noise_key, image_bhwc.shape), image_bhwc)


def _within(start_b: jax.Array, size_b: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
  place = jax.lax.broadcasted_iota(int, shape, axis) - start_b[:, None, None]
  return (place >= 0) & (place < size_b[:, None, None])
