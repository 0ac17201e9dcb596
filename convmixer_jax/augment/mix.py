"""Mixup and CutMix of uint8 images, and the soft targets that belong to them."""

import jax
import jax.numpy as jnp
from jax.sharding import Sharding


def smoothed(label_b: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
  """One-hot targets, float32 [b, num_classes], of which `smoothing` is spread over all classes."""
  one_hot_bk = jax.nn.one_hot(label_b, num_classes)
  return one_hot_bk * (1 - smoothing) + smoothing / num_classes


def mix(
  key: jax.Array,
  image_bhwc: jax.Array,
  target_bk: jax.Array,
  *,
  mixup_alpha: float,
  cutmix_alpha: float,
  group_size: int | None,
  draws_on: Sharding | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each image with its partner, the one at the mirrored place of its group.

  Every group is mixed, with its own ratio, by Mixup or CutMix: either with
  probability 1/2 where both have an alpha. Source: timm, `mixup.py`, its batch
  mode, where a group is the batch of one GPU.

  Args:
    key: of this step.
    image_bhwc: uint8.
    target_bk: float32, smoothed already.
    mixup_alpha, cutmix_alpha: the ratio is drawn from Beta(alpha, alpha); 0 for
      never, but not both.
    group_size: images that are mixed alike, an even number that divides the
      batch; None for the whole batch.
    draws_on: where the ratios are drawn, on several devices a copy on each. Cut
      over them, the loop that draws would ask them all after each of its steps
      whether it is over.

  Returns:
    Both mixed.
  """
  b, h, w, _ = image_bhwc.shape
  size = group_size or b
  kind_key, ratio_key, centre_key = jax.random.split(key, 3)
  shape = (b // size,)
  mixup_share = 0.5 if mixup_alpha and cutmix_alpha else float(mixup_alpha > 0)
  is_mixup_g = jax.random.bernoulli(kind_key, mixup_share, shape)
  alpha_g = _place(jnp.where(is_mixup_g, mixup_alpha, cutmix_alpha), draws_on)
  ratio_g = _place(jax.random.beta(ratio_key, alpha_g, alpha_g), draws_on)
  centre_2g = jax.random.uniform(centre_key, (2, *shape))
  row_g, column_g = (jnp.floor(u * n).astype(int) for u, n in zip(centre_2g, (h, w), strict=True))

  image = image_bhwc.reshape(-1, size, *image_bhwc.shape[1:])
  target = target_bk.reshape(-1, size, target_bk.shape[-1])
  inside_ghw, cut_ratio_g = jax.vmap(box, (0, 0, 0, None, None))(ratio_g, row_g, column_g, h, w)
  cut = jnp.where(inside_ghw[:, None, :, :, None], image[:, ::-1], image)
  mixed = jnp.where(_along(is_mixup_g, image), blend(image, _along(ratio_g, image)), cut)
  ratio = _along(jnp.where(is_mixup_g, ratio_g, cut_ratio_g), target)
  target = ratio * target + (1 - ratio) * target[:, ::-1]
  return mixed.reshape(image_bhwc.shape), target.reshape(target_bk.shape)


def blend(image: jax.Array, ratio: jax.Array) -> jax.Array:
  """Mixup: `ratio` of an image and the rest of its partner, rounded, half to even, to uint8.

  Args:
    image: uint8 [groups, size, h, w, c].
    ratio: [groups, 1, 1, 1, 1].
  """
  image = image.astype(jnp.float32)
  return jnp.rint(ratio * image + (1 - ratio) * image[:, ::-1]).astype(jnp.uint8)


def box(
  ratio: jax.Array, row: jax.Array, column: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """CutMix: which pixels [height, width] become the partner's, and the share of those that stay.

  The box around pixel (row, column) has an area of 1 - `ratio` before its sides
  become even and it is cut off at the border; the share is that after it.
  """
  inside_hw = jnp.ones((height, width), bool)
  for axis, (centre, size) in enumerate(((row, height), (column, width))):
    half = jnp.floor(size * jnp.sqrt(1 - ratio)).astype(int) // 2
    place = jax.lax.broadcasted_iota(int, (height, width), axis)
    inside_hw &= (place >= centre - half) & (place < centre + half)
  return inside_hw, 1 - inside_hw.mean()


def _place(array: jax.Array, sharding: Sharding | None) -> jax.Array:
  return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


def _along(group: jax.Array, array: jax.Array) -> jax.Array:
  """[groups] -> [groups, 1, ...] with the rank of `array`."""
  return group.reshape(-1, *[1] * (array.ndim - 1))
