"""Random rectangles for random resized crops and random erasing."""

import math

import jax
import jax.numpy as jnp

# Top, left, height and width in pixels, each int32 [b].
Rectangles = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def draw(
  key: jax.Array,
  image_shape: tuple[int, int, int],
  *,
  area: tuple[float, float],
  ratio: tuple[float, float],
  largest: tuple[int, int],
  fallback: tuple[int, int],
) -> Rectangles:
  """Draws one rectangle per image, as in timm (`transforms.py`, `random_erasing.py`).

  Draws ten pairs of area and ratio and takes the first whose rectangle fits into `largest`. Its
  position is uniform.

  Args:
    key: random key of this step.
    image_shape: (b, height, width).
    area: range of the area as a fraction of the image's, drawn uniformly.
    ratio: range of height over width, drawn log-uniformly.
    largest: maximum height and width.
    fallback: height and width of a centred rectangle if none of the ten fits.
  """
  b, *sides = image_shape
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  area_bt = jax.random.uniform(area_key, (b, 10), minval=area[0], maxval=area[1]) * math.prod(sides)
  low, high = (math.log(r) for r in ratio)
  ratio_bt = jnp.exp(jax.random.uniform(ratio_key, (b, 10), minval=low, maxval=high))
  sizes_2bt = jnp.rint(jnp.sqrt(jnp.stack([area_bt * ratio_bt, area_bt / ratio_bt])))
  fits_bt = ((sizes_2bt > 0) & (sizes_2bt <= jnp.array(largest)[:, None, None])).all(0)
  first_2b1 = jnp.broadcast_to(fits_bt.argmax(1)[None, :, None], (2, b, 1))
  sizes_2b = jnp.take_along_axis(sizes_2bt, first_2b1, 2)[..., 0]
  is_found_b = fits_bt.any(1)
  sizes_2b = jnp.where(is_found_b[None], sizes_2b, jnp.array(fallback)[:, None]).astype(int)
  room_2b = jnp.array(sides)[:, None] - sizes_2b
  place_2b = jnp.floor(jax.random.uniform(place_key, (2, b)) * (room_2b + 1)).astype(int)
  (top_b, left_b), (height_b, width_b) = (
    jnp.where(is_found_b[None], place_2b, room_2b // 2),
    sizes_2b,
  )
  return top_b, left_b, height_b, width_b
