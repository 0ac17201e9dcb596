"""Small random rotations, shifts and zooms, as in Keras's ImageDataGenerator."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def random_affine(
  key: jax.Array, image_bhwc: jax.Array, rotate: float, shift: float, zoom: float
) -> jax.Array:
  """Rotates, shifts and zooms each image about its centre; fills by repeating the border.

  Args:
    key: random key of this step.
    image_bhwc: uint8; interpolated linearly and rounded.
    rotate: maximum angle in degrees, in either direction.
    shift: maximum shift in either direction, as a fraction of the side.
    zoom: scale factors of height and width are drawn independently from [1 - zoom, 1 + zoom].
  """
  b, h, w, _ = image_bhwc.shape
  draw_b5 = jax.random.uniform(key, (b, 5), minval=-1.0, maxval=1.0)
  angle_b = jnp.deg2rad(rotate * draw_b5[:, 0])
  moved_b2 = shift * draw_b5[:, 1:3] * jnp.array([[h, w]])
  scale_b2 = 1 + zoom * draw_b5[:, 3:]
  return jax.vmap(affine)(image_bhwc, angle_b, moved_b2, scale_b2)


def affine(
  image_hwc: jax.Array, angle: jax.Array, moved_2: jax.Array, scale_2: jax.Array
) -> jax.Array:
  """Samples the image at rotation(angle) @ (scale_2 * place + moved_2), relative to the centre."""
  h, w, _ = image_hwc.shape
  centre_211 = jnp.array([(h - 1) / 2, (w - 1) / 2])[:, None, None]
  place_2hw = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")) - centre_211
  y_hw, x_hw = place_2hw * scale_2[:, None, None] + moved_2[:, None, None]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  source_2hw = jnp.stack([cos * y_hw + sin * x_hw, cos * x_hw - sin * y_hw]) + centre_211

  def channel(image_hw: jax.Array) -> jax.Array:
    return map_coordinates(image_hw, list(source_2hw), order=1, mode="nearest")

  levels = jax.vmap(channel, 2, 2)(image_hwc.astype(jnp.float32))
  return jnp.rint(levels).astype(jnp.uint8)
