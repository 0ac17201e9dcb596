import functools

import jax
import numpy as np
import PIL.Image
import pytest

from convmixer_jax.augment import geometric
from convmixer_jax.augment.each import all_at_once, one_by_one
from convmixer_jax.augment.op import Interpolation, Op
from tests import pillow_augment

GEOMETRIC = [op for op in Op if op >= Op.ROTATE]
FILL = (124, 116, 104)
LIMITS = {Op.ROTATE: 30, Op.TRANSLATE_X: 43.2, Op.TRANSLATE_Y: 36}  # at m=10; 0.3 for shears


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def apply(images, op_b, argument_b, interpolation_b, fill, interpolations, way=one_by_one):
  def function(*of_image):
    return geometric.apply(*of_image, fill, interpolations)

  transform = geometric.transform_of(op_b, argument_b)
  return way(function)(images, op_b, transform, interpolation_b)


def arguments(op):
  """Covers the whole range, including its ends, a small step and points on the border."""
  limit = LIMITS.get(op, 0.3)
  random = np.random.RandomState(op).uniform(-limit, limit, 20)
  halves = (0.5, -0.5, 3, -7.5) if limit > 30 else ()
  return np.float32([-limit, limit, 0, limit / 40, *halves, *random])


def ours(images, op, argument_b, interpolation, fill):
  op_b, interpolation_b = (np.full(len(images), v, np.int32) for v in (op, interpolation))
  return np.asarray(apply(images, op_b, argument_b, interpolation_b, fill, tuple(Interpolation)))


def pillows(images, op, argument_b, interpolation, fill):
  resample = pillow_augment.FILTERS[interpolation]
  results = [
    pillow_augment.apply(PIL.Image.fromarray(image.squeeze()), op, float(argument), resample, fill)
    for image, argument in zip(images, argument_b, strict=True)
  ]
  return np.stack([np.asarray(result) for result in results]).reshape(images.shape)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("interpolation", Interpolation, ids=lambda value: value.name)
@pytest.mark.parametrize("op", GEOMETRIC, ids=lambda op: op.name)
def test_pixels_are_pillows(photos, op, interpolation, channels):
  """Includes the border: the test for points outside is equally exact."""
  argument_b = np.tile(arguments(op), len(photos))
  images = np.repeat(photos[..., :channels], len(argument_b) // len(photos), axis=0)
  settings = (images, op, argument_b, interpolation, FILL[:channels])
  difference = np.abs(ours(*settings).astype(int) - pillows(*settings))
  if interpolation == Interpolation.NEAREST:  # may pick the other pixel in a tie
    assert (difference > 0).mean() <= 1e-6
  else:
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_no_argument_and_no_geometric_op_leave_the_image(photos):
  for op in Op:
    for interpolation in Interpolation:
      argument = 0 if op in GEOMETRIC else 7
      result = ours(photos, op, np.full(len(photos), argument, "f4"), interpolation, FILL)
      np.testing.assert_array_equal(result, photos)


def test_each_image_has_its_own_op_argument_and_interpolation(photos):
  images = np.repeat(photos, 6, axis=0)
  random = np.random.RandomState(0)
  op_b = random.choice(GEOMETRIC, len(images)).astype(np.int32)
  argument_b = random.uniform(-0.3, 0.3, len(images)).astype(np.float32)
  kinds = (Interpolation.BICUBIC, Interpolation.BILINEAR)
  interpolation_b = random.choice(kinds, len(images)).astype(np.int32)
  settings = (images, op_b, argument_b, interpolation_b, FILL, kinds)
  together = apply(*settings)
  np.testing.assert_array_equal(together, apply(*settings, all_at_once))
  for i, image in enumerate(together):
    alone = ours(images[i : i + 1], op_b[i], argument_b[i : i + 1], interpolation_b[i], FILL)
    np.testing.assert_array_equal(image, alone[0])


def test_any_affine_transform(photos):
  """Scaled, rotated and translated, about either origin."""
  linear = np.float32([[1.3, -0.4], [0.2, 0.6]])
  shift = np.float32([-5.3, 7.9])
  height, width = photos.shape[1:3]
  for centred in (True, False):
    transform = geometric.Affine(linear, shift, np.array(centred))
    result = geometric.affine(photos[0], transform, Interpolation.BICUBIC, FILL)
    centre = np.array([width / 2, height / 2]) * centred
    x, y = centre + shift - linear.astype(float) @ centre
    (a, b), (c, d) = linear.tolist()
    photo = PIL.Image.fromarray(photos[0])
    resample = PIL.Image.Resampling.BICUBIC
    expected = pillow_augment.affine(photo, (a, b, x, c, d, y), resample, FILL)
    difference = np.abs(np.asarray(result).astype(int) - np.asarray(expected))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


@pytest.mark.parametrize(
  "shape,fill,interpolations,message",
  [
    ((4, 4, 3), (0,), [Interpolation.NEAREST], "fill must be 3 levels"),
    ((4, 4, 1), (0,), [], "must name at least one"),
    ((4, 4097, 1), (0,), [Interpolation.NEAREST], "sides up to 4096"),
  ],
)
def test_what_does_not_fit_is_refused(shape, fill, interpolations, message):
  zero = np.int32(0)
  transform = geometric.transform_of(zero, np.float32(0))
  with pytest.raises(ValueError, match=message):
    geometric.apply(np.zeros(shape, np.uint8), zero, transform, zero, fill, interpolations)
