import dataclasses

import numpy as np
import pytest

from convmixer_jax.augment import policy as policy_lib
from convmixer_jax.augment.op import Interpolation, Op
from convmixer_jax.augment.policy import parse
from convmixer_jax.errors import UserError
from tests import pillow_augment


def fields(policy):
  """The policy without its ops and argument function."""
  values = dataclasses.asdict(policy)
  del values["ops"], values["argument"]
  return tuple(values.values())


TIMM = (Interpolation.BILINEAR, Interpolation.BICUBIC)


@pytest.mark.parametrize(
  "text,expected",
  [
    ("rand-m9-mstd0.5-inc1", (2, 0.5, 9, 0.5, 10, TIMM, True)),
    ("rand-inc1-mstd0.5-m9", (2, 0.5, 9, 0.5, 10, TIMM, True)),
    ("rand", (2, 0.5, 10, 0, 10, TIMM, True)),
    ("rand-n3-mmax30-m15-p0.25-mstd101", (3, 0.25, 15, np.inf, 30, TIMM, True)),
    ("torchvision-n1-m12", (1, 1, 12, 0, 30, (Interpolation.NEAREST,), False)),
    ("torchvision", (2, 1, 9, 0, 30, (Interpolation.NEAREST,), False)),
  ],
)
def test_what_a_string_means(text, expected):
  assert fields(parse(text)) == expected
  assert parse(text) == parse(text)
  assert hash(parse(text)) == hash(parse(text))


def test_any_number_after_inc_means_increasing():
  increasing, plain = parse("rand-m9-inc1"), parse("rand-m9")
  assert increasing == parse("rand-m9-inc0") != plain


@pytest.mark.parametrize(
  "text,message",
  [
    ("", "must begin with one of .*'rand', 'torchvision'"),
    ("augmix-m3", "must begin with .* not 'augmix'"),
    ("rand-m9-x3", "section 'x3' is unknown; the sections of 'rand' are m, n, mstd, mmax, p, inc"),
    ("rand-m9-", "section '' is unknown"),
    ("rand-M9", "section 'M9' is unknown"),
    ("rand-m9-w0", "section 'w0' sets weights, which are not supported"),
    ("rand-m9.5", "m must be a whole number, got '9.5'"),
    ("rand-m", "m must be a whole number, got ''"),
    ("rand-n0", "n must be a whole number from 1, got '0'"),
    ("rand-inc", r"inc must be a whole number \(any number, even 0, means yes\), got ''"),
    ("rand-p1.5", "p must be a number from 0 to 1, got '1.5'"),
    ("rand-mstdinf", "section 'mstdinf' is unknown"),
    ("rand-m9-m8", "m occurs twice"),
    ("torchvision-m31", "m must be a whole number from 0 to 30, got '31'"),
    ("torchvision-m9-inc1", "section 'inc1' is unknown; the sections of 'torchvision' are m, n"),
  ],
)
def test_a_wrong_string_is_named_with_what_is_allowed(text, message):
  with pytest.raises(UserError, match=f"policy '{text}'.*{message}"):
    parse(text)


def arguments(policy, op, magnitude_n, sign_n, height, width):
  op_n = np.full(len(magnitude_n), op, np.int32)
  return np.asarray(policy.argument(op_n, np.float32(magnitude_n), sign_n, height, width))


@pytest.mark.parametrize("text", ["rand-inc1", "rand"])
def test_timm_arguments(text):
  """Covers whole magnitudes, where truncation of arguments is most fragile, and values between."""
  policy = parse(text)
  magnitude_n = np.float32([*range(11), *np.random.RandomState(0).uniform(0, 10, 200)])
  for sign in (-1, 1):
    sign_n = np.full(len(magnitude_n), sign, np.float32)
    for op, name in zip(policy.ops, pillow_augment.TIMM_OPS, strict=True):
      found = arguments(policy, op, magnitude_n, sign_n, 80, 96)
      for magnitude, argument in zip(magnitude_n.tolist(), found, strict=True):
        increasing = text == "rand-inc1"
        expected = pillow_augment.timm_op(name, magnitude, sign, (96, 80), increasing)
        assert expected[0] == op
        np.testing.assert_allclose(argument, expected[1], rtol=1e-6, err_msg=f"{name} {magnitude}")


def test_timm_recipe_at_9_and_10():
  """`rand-m9-mstd0.5-inc1` on 224 x 224 pixels."""
  expected = {
    Op.ROTATE: (27, 30), Op.POSTERIZE: (1, 0), Op.SOLARIZE: (26, 0), Op.SOLARIZE_ADD: (99, 110),
    Op.COLOR: (1.81, 1.9), Op.CONTRAST: (1.81, 1.9), Op.BRIGHTNESS: (1.81, 1.9),
    Op.SHARPNESS: (1.81, 1.9), Op.SHEAR_X: (0.27, 0.3), Op.SHEAR_Y: (0.27, 0.3),
    Op.TRANSLATE_X: (90.72, 100.8), Op.TRANSLATE_Y: (90.72, 100.8),
  }  # fmt: skip
  policy = parse("rand-m9-mstd0.5-inc1")
  assert set(policy.ops) == {Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT, *expected}
  for op, values in expected.items():
    found = arguments(policy, op, [9, 10], np.ones(2, np.float32), 224, 224)
    np.testing.assert_allclose(found, values, rtol=1e-6)


def test_magnitudes_above_10_stay_meaningful():
  found = arguments(parse("rand-inc1-mmax30"), Op.POSTERIZE, [15, 30], np.ones(2, np.float32), 8, 8)
  np.testing.assert_array_equal(found, 0)


def test_torchvision_arguments():
  policy = parse("torchvision")
  for size in (32, 224):
    for index in range(31):
      for sign in (-1, 1):
        for op, name in zip(policy.ops, pillow_augment.TORCHVISION_OPS, strict=True):
          found = arguments(policy, op, [index], np.float32([sign]), size, size)
          expected = pillow_augment.torchvision_op(name, index, sign, (size, size))
          assert expected[0] == op
          np.testing.assert_allclose(found, expected[1], rtol=1e-6, err_msg=f"{name} {index}")


def test_torchvision_at_12_on_cifar():
  policy, one = parse("torchvision-n2-m12"), np.ones(1, np.float32)
  expected = {Op.TRANSLATE_X: -5, Op.ROTATE: 12, Op.COLOR: 1.36, Op.POSTERIZE: 6, Op.SOLARIZE: 153}
  for op, value in expected.items():
    np.testing.assert_allclose(arguments(policy, op, [12], one, 32, 32), value, rtol=1e-6)
  assert policy_lib.parse("torchvision-m8").magnitude == 8
