"""What happens to a batch of uint8 images on the device, before the model sees it."""

import jax
import jax.numpy as jnp


def normalize(image_bhwc: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """uint8 -> float32 with each channel's mean and deviation, given as fractions of 255."""
  mean_111c = 255 * jnp.array(mean, jnp.float32)[None, None, None]
  std_111c = 255 * jnp.array(std, jnp.float32)[None, None, None]
  return (image_bhwc.astype(jnp.float32) - mean_111c) / std_111c


def random_flip(key: jax.Array, image_bhwc: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability 1/2."""
  flip_b111 = jax.random.bernoulli(key, shape=(len(image_bhwc), 1, 1, 1))
  return jnp.where(flip_b111, image_bhwc[:, :, ::-1], image_bhwc)


def random_crop(key: jax.Array, image_bhwc: jax.Array, padding: int) -> jax.Array:
  """Pads with `padding` zero pixels on each side and crops each image back at random."""
  b, h, w, c = image_bhwc.shape
  padded = jnp.pad(image_bhwc, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  offset_b2 = jax.random.randint(key, (b, 2), 0, 2 * padding + 1)

  def crop(image_hwc: jax.Array, offset_2: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice(image_hwc, (offset_2[0], offset_2[1], 0), (h, w, c))

  return jax.vmap(crop)(padded, offset_b2)


def augment(
  key: jax.Array,
  image_bhwc: jax.Array,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  crop_padding: int,
  flip: bool,
) -> jax.Array:
  """The training images of one step: crop, flip, normalize.

  Args:
    key: of this step. What happens to an image depends on the key and on its
      place in the global batch alone, not on the number of devices.
    image_bhwc: uint8.
    mean, std: of each channel, as fractions of 255.
    crop_padding: as in `random_crop`; 0 for no crop.
    flip: whether to flip at random.

  Returns:
    float32 of the same shape.
  """
  crop_key, flip_key = jax.random.split(key)
  if crop_padding:
    image_bhwc = random_crop(crop_key, image_bhwc, crop_padding)
  if flip:
    image_bhwc = random_flip(flip_key, image_bhwc)
  return normalize(image_bhwc, mean, std)
