"""Mixup and CutMix of uint8 images and their soft targets."""

import jax
import jax.numpy as jnp
from jax.sharding import Sharding


def smoothed(label_b: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
  """One-hot targets, float32 [b, num_classes], with `smoothing` spread over all classes."""
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
  """Mixes each image with its partner, the image at the mirrored index in its group.

  Each group is mixed with its own ratio, by either Mixup or CutMix, with probability 1/2 each if
  both alphas are above 0. Source: timm, `mixup.py`, batch mode, where a group is the batch of one
  GPU.

  Args:
    key: random key of this step.
    image_bhwc: uint8.
    target_bk: float32, already smoothed.
    mixup_alpha, cutmix_alpha: the ratio is drawn from Beta(alpha, alpha); 0 disables one of the
      two, at least one must be above 0.
    group_size: number of images that share a ratio, even and a divisor of the batch size; None for
      the whole batch.
    draws_on: sharding of the drawn ratios, replicated if there are several devices. If they were
      sharded, the sampling loop would synchronize all devices after each iteration to see whether
      it has finished.

  Returns:
    The mixed images and targets.
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
  """Mixup: ratio * image + (1 - ratio) * partner, rounded half to even, to uint8.

  Args:
    image: uint8 [groups, size, h, w, c].
    ratio: [groups, 1, 1, 1, 1].
  """
  image = image.astype(jnp.float32)
  return jnp.rint(ratio * image + (1 - ratio) * image[:, ::-1]).astype(jnp.uint8)


def box(
  ratio: jax.Array, row: jax.Array, column: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """CutMix: a mask [height, width] of the partner's pixels, and the share of the other pixels.

  The box around pixel (row, column) has an area of 1 - `ratio`, before its sides are rounded down
  to even numbers and it is clipped at the border; the returned share accounts for both.
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
  """Reshapes [groups] to [groups, 1, ...] with the rank of `array`."""
  return group.reshape(-1, *[1] * (array.ndim - 1))
