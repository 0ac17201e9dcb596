"""The augmentation ops, and the meaning of their arguments."""

import enum


class Op(enum.IntEnum):
  """An op; arrays of its numbers give each image of a batch its own op.

  The argument is one float32 per image, in the units given below; ops without a unit ignore it.
  """

  IDENTITY = 0
  # Photometric: `photometric.apply`.
  AUTO_CONTRAST = 1  # stretches each channel to 0..255
  EQUALIZE = 2  # flattens each channel's histogram
  INVERT = 3
  POSTERIZE = 4  # bits to keep, 0..8; 0 gives a black image
  SOLARIZE = 5  # pixels at or above this level are inverted
  SOLARIZE_ADD = 6  # levels added to pixels below 128
  BRIGHTNESS = 7  # factor; 0 is black, 1 the original
  CONTRAST = 8  # factor; 0 is the mean grey
  COLOR = 9  # factor; 0 is the grey image
  SHARPNESS = 10  # factor; 0 is the smoothed image
  # Geometric: `geometric.apply`. x and y are input coordinates for the output pixel at (x, y).
  ROTATE = 11  # degrees, counter-clockwise about the centre
  SHEAR_X = 12  # f in x + f y, from the top left corner
  SHEAR_Y = 13  # f in y + f x, from the top left corner
  CENTRED_SHEAR_X = 14  # the same two, from the centre
  CENTRED_SHEAR_Y = 15
  TRANSLATE_X = 16  # p in x + p, pixels
  TRANSLATE_Y = 17  # p in y + p, pixels


class Interpolation(enum.IntEnum):
  """Interpolation between pixels."""

  NEAREST = 0
  BILINEAR = 1
  BICUBIC = 2
