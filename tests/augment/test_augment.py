import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import augment
from convmixer_jax.augment import Augmentation, normalize, policy, random_flip
from convmixer_jax.parallel import sharding

KEY = jax.random.key(0)
IMAGE = np.random.RandomState(0).randint(0, 256, (64, 6, 5, 3)).astype(np.uint8)
LABEL = np.arange(64, dtype=np.int32) % 10
PLAIN = Augmentation(mean=(0.5,) * 3, std=(0.2,) * 3, num_classes=10, flip=False)
FULL = Augmentation(
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
  num_classes=10,
  crop_padding=1,
  resized_crop=((0.3, 1.0), (3 / 4, 4 / 3), "random"),
  policy=policy.parse("rand-m9-mstd0.5-inc1"),
  jitter=0.4,
  label_smoothing=0.1,
  mixup_alpha=0.5,
  cutmix_alpha=0.5,
  group_size=4,
  erase_probability=0.25,
)


def test_normalize():
  mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
  expected = (IMAGE / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(normalize(IMAGE, mean, std), expected, rtol=1e-5, atol=1e-5)


def test_flip_mirrors_about_half_of_the_images():
  flipped = np.asarray(random_flip(KEY, IMAGE))
  is_same = (flipped == IMAGE).all((1, 2, 3))
  is_mirrored = (flipped == IMAGE[:, :, ::-1]).all((1, 2, 3))
  assert (is_same ^ is_mirrored).all()
  assert 16 < is_mirrored.sum() < 48  # a fair coin fails with probability 1e-4


def test_nothing_asked_for_is_normalisation_and_one_hot_labels():
  image, target = PLAIN(KEY, IMAGE, LABEL)
  np.testing.assert_array_equal(image, normalize(IMAGE, PLAIN.mean, PLAIN.std))
  np.testing.assert_array_equal(target, np.eye(10)[LABEL])


@pytest.mark.parametrize(
  "setting",
  [
    {"crop_padding": 1},
    pytest.param({"resized_crop": FULL.resized_crop}, marks=pytest.mark.slow),
    {"flip": True},
    pytest.param({"policy": FULL.policy}, marks=pytest.mark.slow),
    {"jitter": 0.4},
    {"mixup_alpha": 0.5},
    {"cutmix_alpha": 0.5},
    {"erase_probability": 0.5},
  ],
  ids=lambda setting: next(iter(setting)),
)
def test_each_setting_changes_images_anew_with_each_key(setting):
  augmentation = dataclasses.replace(PLAIN, **setting)
  image, again, other = (
    augmentation(key, IMAGE, LABEL)[0] for key in (KEY, KEY, jax.random.key(1))
  )
  np.testing.assert_array_equal(image, again)
  assert not jnp.array_equal(image, PLAIN(KEY, IMAGE, LABEL)[0])
  assert not jnp.array_equal(image, other)


def test_order_is_the_authors(monkeypatch):
  """Crop, flip, RandAugment, jitter and Mixup on uint8, then normalisation, then erasing."""
  order = []

  def record(module, name):
    function = getattr(module, name)

    def recording(key, image, *args, **kwargs):
      order.append((name, str(image.dtype)))
      return function(key, image, *args, **kwargs)

    monkeypatch.setattr(module, name, recording)

  functions = {
    "random_crop": augment.crop,
    "random_resized_crop": augment.crop,
    "random_flip": augment,
    "rand_augment": augment.rand_augment,
    "color_jitter": augment.jitter,
    "mix": augment.mix,
    "random_erase": augment.erase,
  }
  for name, module in functions.items():
    record(module, name)
  jax.eval_shape(lambda *batch: FULL(KEY, *batch), IMAGE, LABEL)  # new function: retraced
  assert [name for name, _ in order] == list(functions)
  assert [dtype for _, dtype in order] == ["uint8"] * 6 + ["float32"]


def test_geometric_ops_fill_with_timms_mean_and_torchvisions_black(monkeypatch):
  fills = []
  monkeypatch.setattr(
    augment.rand_augment,
    "rand_augment",
    lambda key, image, policy, fill, mesh: fills.append(fill) or image,
  )
  for text in ("rand-m9-mstd0.5-inc1", "torchvision-n2-m12"):
    augmentation = dataclasses.replace(FULL, policy=policy.parse(text))
    jax.eval_shape(lambda *batch, apply=augmentation: apply(KEY, *batch), IMAGE, LABEL)
  assert fills == [[124, 116, 104], [0, 0, 0]]


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_devices():
  def augmented(devices):
    mesh = sharding.make_mesh(devices)
    batch = jax.device_put((IMAGE, LABEL), sharding.batch_sharding(mesh))
    return jax.jit(dataclasses.replace(FULL, mesh=mesh))(KEY, *batch)

  one, eight = augmented(jax.devices()[:1]), augmented(jax.devices())
  assert len(eight[0].sharding.device_set) == 8
  for a, b in zip(one, eight, strict=True):
    np.testing.assert_array_equal(a, b)
