import jax
import numpy as np
import PIL.Image
import pytest

from convmixer_jax.augment import photometric
from convmixer_jax.augment.each import all_at_once, one_by_one
from convmixer_jax.augment.op import Op
from tests import pillow_augment

FACTORS = [0, 0.1, 0.19, 0.5, 0.87, 1, 1.01, 1.36, 1.81, 1.9]
ARGUMENTS = {
  Op.POSTERIZE: range(9),
  Op.SOLARIZE: [0, 1, 26, 128, 178.5, 255, 256],
  Op.SOLARIZE_ADD: [0, 1, 50, 99, 110, 128, 200],
  Op.BRIGHTNESS: FACTORS,
  Op.CONTRAST: FACTORS,
  Op.COLOR: FACTORS,
  Op.SHARPNESS: FACTORS,
}
PHOTOMETRIC = [op for op in Op if op <= Op.SHARPNESS]

apply = jax.jit(one_by_one(photometric.apply))


def ours(images, op, argument):
  count = len(images)
  return np.asarray(apply(images, np.full(count, op, np.int32), np.full(count, argument, "f4")))


def pillows(images, op, argument):
  results = [
    pillow_augment.apply(PIL.Image.fromarray(image.squeeze()), op, float(np.float32(argument)))
    for image in images
  ]
  return np.stack([np.asarray(result) for result in results]).reshape(images.shape)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("op", PHOTOMETRIC, ids=lambda op: op.name)
def test_every_level_is_pillows(photos, op, channels):
  images = photos[..., :channels]
  for argument in ARGUMENTS.get(op, [0]):
    expected = pillows(images, op, argument)
    np.testing.assert_array_equal(ours(images, op, argument), expected, err_msg=str(argument))
    neutral = op in (Op.IDENTITY, Op.COLOR) if channels == 1 else op == Op.IDENTITY
    if neutral:
      np.testing.assert_array_equal(expected, images)


def test_auto_contrast_between_any_two_levels():
  """Covers every level in between, also where Pillow's float64 falls just short of an integer."""
  low, high = np.sort(np.random.RandomState(0).randint(0, 256, (2, 2000)), axis=0)
  levels = np.clip(np.arange(256)[None], low[:, None], high[:, None]).astype(np.uint8)
  images = levels.reshape(-1, 16, 16, 1)
  expected = pillows(images, Op.AUTO_CONTRAST, 0)
  np.testing.assert_array_equal(ours(images, Op.AUTO_CONTRAST, 0), expected)
  spread = np.maximum(high - low, 1)[:, None]
  whole = ((255 * (levels - low[:, None].astype(int))) // spread).reshape(images.shape)
  assert (expected < whole)[high > low].any()


@pytest.mark.parametrize("op", [Op.AUTO_CONTRAST, Op.EQUALIZE, Op.CONTRAST, Op.SHARPNESS])
def test_images_of_few_levels_and_pixels(op):
  random = np.random.RandomState(0)
  flat = np.full((1, 9, 7, 3), 200, np.uint8)
  for images in (flat, flat[:, :2], flat // 2 + random.randint(0, 2, flat.shape).astype(np.uint8)):
    np.testing.assert_array_equal(ours(images, op, 1.5), pillows(images, op, 1.5))


def test_each_image_has_its_own_op_and_argument(photos):
  images = np.repeat(photos, 5, axis=0)
  random = np.random.RandomState(0)
  op_b = random.choice(PHOTOMETRIC, len(images)).astype(np.int32)
  argument_b = random.uniform(0, 3, len(images)).astype(np.float32)
  together = np.asarray(apply(images, op_b, argument_b))
  at_once = jax.jit(all_at_once(photometric.apply))(images, op_b, argument_b)
  np.testing.assert_array_equal(together, at_once)
  for i, image in enumerate(together):
    alone = ours(images[i : i + 1], op_b[i], argument_b[i])
    np.testing.assert_array_equal(image, alone[0])
  assert (together != images).any((1, 2, 3)).sum() > 10


def test_only_the_named_ops_are_applied(photos):
  arguments = photos[0], np.int32(Op.INVERT), np.float32(0)
  inverted = photometric.apply(*arguments, (Op.POSTERIZE, Op.INVERT))
  np.testing.assert_array_equal(inverted, 255 - photos[0])
  np.testing.assert_array_equal(photometric.apply(*arguments, (Op.POSTERIZE,)), photos[0])


@pytest.mark.parametrize(
  "shape,dtype", [((4, 4, 2), "u1"), ((1, 4, 4, 3), "u1"), ((4, 4, 3), "f4")]
)
def test_only_grey_and_rgb_levels(shape, dtype):
  with pytest.raises(ValueError, match=r"must be uint8 of shape \(height, width, 1 or 3\)"):
    photometric.apply(np.zeros(shape, dtype), np.int32(0), np.float32(0))
