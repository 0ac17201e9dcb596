"""RandAugment on the host with Pillow, as timm and torchvision do it: the oracle of the tests.

Each op takes a PIL image, the argument in the units of `Op`, a Pillow
resampling filter and a fill colour; those that need less ignore the rest. `timm_rand_augment`
and `torchvision_rand_augment` are the whole random transforms, for a host pipeline.

Semantics: timm/data/auto_augment.py as of version 0.5.0, torchvision 0.11's autoaugment.py and
functional_pil.py.
"""

import enum
import math
import random

from PIL import Image, ImageEnhance, ImageOps


class Op(enum.IntEnum):
  """One operation; arrays hold its number, so that each image of a batch has its own.

  The argument is one float32 per image, in the units given here; ops that name none ignore it.
  """

  IDENTITY = 0
  # Photometric: `photometric.apply`.
  AUTO_CONTRAST = 1  # each channel stretched to 0..255
  EQUALIZE = 2  # each channel's histogram flattened
  INVERT = 3
  POSTERIZE = 4  # bits kept, 0..8; with 0 the image is black
  SOLARIZE = 5  # pixels from this level on are inverted
  SOLARIZE_ADD = 6  # levels added to pixels below 128
  BRIGHTNESS = 7  # factor; 0 is black, 1 the image
  CONTRAST = 8  # factor; 0 is the mean grey
  COLOR = 9  # factor; 0 is the grey image
  SHARPNESS = 10  # factor; 0 is the smoothed image
  # Geometric: `geometric.apply`. x and y are where the output pixel at (x, y) takes its value.
  ROTATE = 11  # degrees, counter-clockwise about the centre
  SHEAR_X = 12  # f in x + f y, from the top left corner
  SHEAR_Y = 13  # f in y + f x, from the top left corner
  CENTRED_SHEAR_X = 14  # the same two from the centre
  CENTRED_SHEAR_Y = 15
  TRANSLATE_X = 16  # p in x + p, pixels
  TRANSLATE_Y = 17  # p in y + p, pixels


class Interpolation(enum.IntEnum):
  """How a value is found between pixels."""

  NEAREST = 0
  BILINEAR = 1
  BICUBIC = 2


FILTERS = {
  Interpolation.NEAREST: Image.Resampling.NEAREST,
  Interpolation.BILINEAR: Image.Resampling.BILINEAR,
  Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}


def affine(image, matrix, resample, fill):
  """`matrix`: six numbers, output to input, from the top left corner."""
  fill = fill[0] if image.mode == "L" else tuple(fill)
  return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def apply(image, op, argument=0.0, resample=Image.Resampling.NEAREST, fill=(0, 0, 0)):
  """The image after one op."""
  width, height = image.size
  match op:
    case Op.IDENTITY:
      return image
    case Op.AUTO_CONTRAST:
      return ImageOps.autocontrast(image)
    case Op.EQUALIZE:
      return ImageOps.equalize(image)
    case Op.INVERT:
      return ImageOps.invert(image)
    case Op.POSTERIZE:
      # Pillow 13 refuses 0 bits; before, the image was black.
      return ImageOps.posterize(image, int(argument)) if argument >= 1 else image.point(lambda _: 0)
    case Op.SOLARIZE:
      return ImageOps.solarize(image, argument)
    case Op.SOLARIZE_ADD:
      table = [min(255, i + int(argument)) if i < 128 else i for i in range(256)]
      return image.point(table * len(image.getbands()))
    case Op.BRIGHTNESS:
      return ImageEnhance.Brightness(image).enhance(argument)
    case Op.CONTRAST:
      return ImageEnhance.Contrast(image).enhance(argument)
    case Op.COLOR:
      return ImageEnhance.Color(image).enhance(argument)
    case Op.SHARPNESS:
      return ImageEnhance.Sharpness(image).enhance(argument)
    case Op.ROTATE:
      fill = fill[0] if image.mode == "L" else tuple(fill)
      return image.rotate(argument, resample, fillcolor=fill)
    case Op.SHEAR_X:
      return affine(image, (1, argument, 0, 0, 1, 0), resample, fill)
    case Op.SHEAR_Y:
      return affine(image, (1, 0, 0, argument, 1, 0), resample, fill)
    case Op.CENTRED_SHEAR_X:
      return affine(image, (1, argument, -argument * height / 2, 0, 1, 0), resample, fill)
    case Op.CENTRED_SHEAR_Y:
      return affine(image, (1, 0, 0, argument, 1, -argument * width / 2), resample, fill)
    case Op.TRANSLATE_X:
      return affine(image, (1, 0, argument, 0, 1, 0), resample, fill)
    case Op.TRANSLATE_Y:
      return affine(image, (1, 0, 0, 0, 1, argument), resample, fill)


TIMM_OPS = (
  "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color",
  "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip


def timm_op(name, magnitude, sign, size, increasing=True):
  """What timm makes of a magnitude: (op, argument) for an image of size (width, height)."""
  level = magnitude / 10
  bits, threshold = int(level * 4), int(level * 256)
  if increasing:
    bits, threshold, factor = 4 - bits, 256 - threshold, max(0.1, 1 + sign * level * 0.9)
  else:
    factor = level * 1.8 + 0.1
  return {
    "AutoContrast": (Op.AUTO_CONTRAST, 0),
    "Equalize": (Op.EQUALIZE, 0),
    "Invert": (Op.INVERT, 0),
    "Rotate": (Op.ROTATE, sign * level * 30),
    "Posterize": (Op.POSTERIZE, bits),
    "Solarize": (Op.SOLARIZE, threshold),
    "SolarizeAdd": (Op.SOLARIZE_ADD, int(level * 110)),
    "Color": (Op.COLOR, factor),
    "Contrast": (Op.CONTRAST, factor),
    "Brightness": (Op.BRIGHTNESS, factor),
    "Sharpness": (Op.SHARPNESS, factor),
    "ShearX": (Op.SHEAR_X, sign * level * 0.3),
    "ShearY": (Op.SHEAR_Y, sign * level * 0.3),
    "TranslateXRel": (Op.TRANSLATE_X, sign * level * 0.45 * size[0]),
    "TranslateYRel": (Op.TRANSLATE_Y, sign * level * 0.45 * size[1]),
  }[name]


def timm_rand_augment(
  image, rng, magnitude=9, std=0.5, layers=2, probability=0.5, fill=(124, 116, 104)
):
  """`rand-m9-mstd0.5-inc1` and its like; `rng` is a `random.Random`."""
  for name in rng.choices(TIMM_OPS, k=layers):
    if rng.random() > probability:
      continue
    level = min(max(rng.gauss(magnitude, std), 0), 10)
    op, argument = timm_op(name, level, rng.choice((-1, 1)), image.size)
    resample = rng.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
    image = apply(image, op, argument, resample, fill)
  return image


TORCHVISION_OPS = (
  "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
  "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip


def torchvision_op(name, index, sign, size):
  """What torchvision makes of bin `index` of 31: (op, argument); positive moves are rightwards."""
  part = index / 30
  slope = math.tan(sign * 0.3 * part)
  factor = 1 + sign * 0.9 * part
  return {
    "Identity": (Op.IDENTITY, 0),
    "ShearX": (Op.CENTRED_SHEAR_X, slope),
    "ShearY": (Op.CENTRED_SHEAR_Y, slope),
    "TranslateX": (Op.TRANSLATE_X, -int(sign * 150 / 331 * size[0] * part)),
    "TranslateY": (Op.TRANSLATE_Y, -int(sign * 150 / 331 * size[1] * part)),
    "Rotate": (Op.ROTATE, sign * 30 * part),
    "Brightness": (Op.BRIGHTNESS, factor),
    "Color": (Op.COLOR, factor),
    "Contrast": (Op.CONTRAST, factor),
    "Sharpness": (Op.SHARPNESS, factor),
    "Posterize": (Op.POSTERIZE, 8 - round(index / 7.5)),
    "Solarize": (Op.SOLARIZE, 255 * (1 - part)),
    "AutoContrast": (Op.AUTO_CONTRAST, 0),
    "Equalize": (Op.EQUALIZE, 0),
  }[name]


def torchvision_rand_augment(image, n=2, m=9, rng=random):
  """RandAugment(n, m) with nearest-neighbour interpolation and black fill."""
  for name in rng.choices(TORCHVISION_OPS, k=n):
    op, argument = torchvision_op(name, m, rng.choice((-1, 1)), image.size)
    image = apply(image, op, argument)
  return image
