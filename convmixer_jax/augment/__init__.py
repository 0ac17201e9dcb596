"""Augmentation of uint8 image batches on the device.

All randomness depends only on a key and on the image's index in the global batch, not on the number
of devices. Every image gets its own draws in every step, and a resumed run makes the same draws as
an uninterrupted one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convmixer_jax.augment import affine, crop, erase, jitter, mix, rand_augment
from convmixer_jax.augment.policy import Policy


def normalize(image_bhwc: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Normalises uint8 to float32 with each channel's mean and std, given as fractions of 255."""
  mean_111c = 255 * jnp.array(mean, jnp.float32)[None, None, None]
  std_111c = 255 * jnp.array(std, jnp.float32)[None, None, None]
  return (image_bhwc.astype(jnp.float32) - mean_111c) / std_111c


def random_flip(key: jax.Array, image_bhwc: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability 1/2."""
  flip_b111 = jax.random.bernoulli(key, shape=(len(image_bhwc), 1, 1, 1))
  return jnp.where(flip_b111, image_bhwc[:, :, ::-1], image_bhwc)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """A recipe's augmentation of training images and labels, in the order of the authors' timm.

  Attributes, in the order of application:
    crop_padding: for `crop.random_crop`; 0 to disable.
    resized_crop: arguments (scale, ratio, interpolation) of `crop.random_resized_crop`, or None.
    rotate, shift, zoom: for `affine.random_affine`; all 0 to disable.
    flip: whether to flip at random.
    policy: for `rand_augment.rand_augment`, or None.
    jitter: for `jitter.color_jitter`; 0 to disable.
    label_smoothing: share of each label that is spread over all classes.
    mixup_alpha, cutmix_alpha, group_size: for `mix.mix`; both alphas 0 to disable.
    mean, std: per channel, as fractions of 255.
    erase_probability, erase_mode: for `erase.random_erase`; probability 0 to disable.
    num_classes: number of classes of the labels.
    mesh: devices that batches are sharded over along their first axis; None for one device.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  num_classes: int
  crop_padding: int = 0
  resized_crop: tuple[tuple[float, float], tuple[float, float], str] | None = None
  rotate: float = 0.0
  shift: float = 0.0
  zoom: float = 0.0
  flip: bool = True
  policy: Policy | None = None
  jitter: float = 0.0
  label_smoothing: float = 0.0
  mixup_alpha: float = 0.0
  cutmix_alpha: float = 0.0
  group_size: int | None = None
  erase_probability: float = 0.0
  erase_mode: str = "pixel"
  mesh: Mesh | None = None

  def __call__(
    self, key: jax.Array, image_bhwc: jax.Array, label_b: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Augments the images and labels of one step.

    Args:
      key: random key of this step.
      image_bhwc: uint8.
      label_b: int32.

    Returns:
      Images, float32 of the same shape, and targets, float32 [b, num_classes].
    """
    image = jnp.asarray(image_bhwc)
    crop_key, resize_key, affine_key, flip_key, *keys = jax.random.split(key, 8)
    policy_key, jitter_key, mix_key, erase_key = keys
    if self.crop_padding:
      image = crop.random_crop(crop_key, image, self.crop_padding)
    if self.resized_crop:
      image = crop.random_resized_crop(resize_key, image, *self.resized_crop)
    if self.rotate or self.shift or self.zoom:
      image = affine.random_affine(affine_key, image, self.rotate, self.shift, self.zoom)
    if self.flip:
      image = random_flip(flip_key, image)
    if self.policy:
      levels = [min(255, round(255 * m)) if self.policy.fills_with_mean else 0 for m in self.mean]
      image = rand_augment.rand_augment(policy_key, image, self.policy, levels, self.mesh)
    if self.jitter:
      image = jitter.color_jitter(jitter_key, image, self.jitter, self.mesh)
    replicated = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())
    target_bk = mix.smoothed(label_b, self.num_classes, self.label_smoothing)
    if self.mixup_alpha or self.cutmix_alpha:
      image, target_bk = mix.mix(
        mix_key,
        image,
        target_bk,
        mixup_alpha=self.mixup_alpha,
        cutmix_alpha=self.cutmix_alpha,
        group_size=self.group_size,
        draws_on=replicated,
      )
    image = normalize(image, self.mean, self.std)
    if self.erase_probability:
      image = erase.random_erase(erase_key, image, self.erase_probability, self.erase_mode)
    return image, target_bk
