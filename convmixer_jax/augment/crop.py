"""Random crops of images of equal size."""

import jax
import jax.numpy as jnp

from convmixer_jax.augment import rectangle
from convmixer_jax.errors import check_name

# Share of the crops that are resized bicubically; the others are resized bilinearly.
INTERPOLATIONS = {"random": 0.5, "bilinear": 0.0, "bicubic": 1.0}


def random_crop(key: jax.Array, image_bhwc: jax.Array, padding: int) -> jax.Array:
  """Pads each side with `padding` zero pixels and takes a random crop of the original size."""
  b, h, w, c = image_bhwc.shape
  padded = jnp.pad(image_bhwc, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  offset_b2 = jax.random.randint(key, (b, 2), 0, 2 * padding + 1)

  def crop(image_hwc: jax.Array, offset_2: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice(image_hwc, (offset_2[0], offset_2[1], 0), (h, w, c))

  return jax.vmap(crop)(padded, offset_b2)


def random_resized_crop(
  key: jax.Array,
  image_bhwc: jax.Array,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  interpolation: str,
) -> jax.Array:
  """Takes a random crop of each image and resizes it to the size of the image.

  Same as on the host (`preprocess.Preprocess`): timm's `RandomResizedCropAndInterpolation` with
  Pillow's resize.

  Args:
    key: random key of this step.
    image_bhwc: uint8.
    scale: range of the crop's area as a fraction of the image's.
    ratio: range of the crop's width over its height.
    interpolation: "bilinear", "bicubic", or "random" for a random choice per image.

  Raises:
    ValueError: if `interpolation` is unknown.
  """
  check_name("interpolation", interpolation, INTERPOLATIONS)
  b, h, w, _ = image_bhwc.shape
  box_key, kernel_key = jax.random.split(key)
  boxes = rectangle.draw(
    box_key,
    (b, h, w),
    area=scale,
    ratio=(1 / ratio[1], 1 / ratio[0]),  # of height over width
    largest=(h, w),
    fallback=(min(h, round(w / ratio[0])), min(w, round(h * ratio[1]))),
  )
  return resized_crop(
    image_bhwc, boxes, jax.random.bernoulli(kernel_key, INTERPOLATIONS[interpolation], (b,))
  )


def resized_crop(
  image_bhwc: jax.Array, boxes: rectangle.Rectangles, is_bicubic_b: jax.Array
) -> jax.Array:
  """Crops each image and resizes the crop to the image's size, within one level of Pillow.

  Args:
    image_bhwc: uint8.
    boxes: the crops; pixels outside them have no effect.
    is_bicubic_b: bicubic, otherwise bilinear.
  """
  _, h, w, _ = image_bhwc.shape
  top_b, left_b, height_b, width_b = boxes
  rows_bij = jax.vmap(_resize_matrix, (None, 0, 0, 0))(h, top_b, height_b, is_bicubic_b)
  columns_bij = jax.vmap(_resize_matrix, (None, 0, 0, 0))(w, left_b, width_b, is_bicubic_b)
  # Pillow also rounds to uint8 between the two passes.
  image = image_bhwc.astype(jnp.float32)
  image = _round(jnp.einsum("bij,bhjc->bhic", columns_bij, image, precision="highest"))
  image = _round(jnp.einsum("bij,bjwc->biwc", rows_bij, image, precision="highest"))
  return image.astype(jnp.uint8)


def _resize_matrix(
  size: int, start: jax.Array, length: jax.Array, is_bicubic: jax.Array
) -> jax.Array:
  """The weight [i, j] of input pixel j in output pixel i when a crop is resized to `size`."""
  zoom = length / size
  stretch = jnp.maximum(zoom, 1)  # antialiasing when downsampling
  centre_i1 = start + (jnp.arange(size)[:, None] + 0.5) * zoom
  place_1j = jnp.arange(size)[None]
  distance_ij = jnp.abs(place_1j + 0.5 - centre_i1) / stretch
  weight_ij = jnp.where(is_bicubic, _bicubic(distance_ij), jnp.maximum(1 - distance_ij, 0))
  weight_ij *= (place_1j >= start) & (place_1j < start + length)
  return weight_ij / weight_ij.sum(1, keepdims=True)


def _bicubic(x: jax.Array) -> jax.Array:
  """Keys' kernel with a = -0.5, for x >= 0."""
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _round(image: jax.Array) -> jax.Array:
  return jnp.clip(jnp.floor(image + 0.5), 0, 255)
