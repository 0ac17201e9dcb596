"""The names of what may happen to an image, and what the argument of each means."""

import enum


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
