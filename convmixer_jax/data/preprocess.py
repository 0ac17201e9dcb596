"""Images of one size from encoded images of any size: decoding and cropping, on the host."""

import dataclasses
import functools
import io
import logging
import math
import multiprocessing
from types import ModuleType

import numpy as np
import PIL.Image

from convmixer_jax.data.resize import resize
from convmixer_jax.errors import CorruptError, UserError, check_name

_log = logging.getLogger(__name__)

CROPS = ("none", "random_resized")
# The kernels of which one resizes a random crop.
INTERPOLATIONS = {
  "random": ("bilinear", "bicubic"),
  "bilinear": ("bilinear",),
  "bicubic": ("bicubic",),
}


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """How the host makes images of one size; nothing else has to happen on the host.

  Attributes:
    image_size: side of the result in pixels.
    crop: "none" takes records that have this size; "random_resized" crops at
      random for training, resizes and crops the centre for evaluation.
    scale, ratio: ranges of a random crop's area, and of its width over height.
    interpolation: of a random crop: "bilinear", "bicubic", or "random": one of
      them for each image, timm's default. Evaluation is always bicubic.
    eval_fraction: side of the centre crop over the resized short side.

  Raises:
    ValueError: if there is no such crop or interpolation.
  """

  image_size: int
  crop: str = "none"
  scale: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  interpolation: str = "random"
  eval_fraction: float = 0.96

  def __post_init__(self):
    check_name("crop", self.crop, CROPS)
    check_name("interpolation", self.interpolation, INTERPOLATIONS)

  def __call__(
    self, image: bytes | np.ndarray, channels: int, rng: np.random.Generator | None
  ) -> np.ndarray:
    """Decodes and crops to uint8 [image_size, image_size, channels], at random if `rng` is given.

    Raises:
      CorruptError: if the image cannot be decoded.
      UserError: if it has another size and is not cropped.
    """
    size = self.image_size
    if isinstance(image, bytes):
      image = decode(image, channels)
    if self.crop == "random_resized":
      return self._centre(image) if rng is None else self._random(image, rng)
    height, width, _ = image.shape
    if (height, width) != (size, size):
      raise UserError(
        f"an image has {height}x{width} pixels, but config.data.image_size is {size}: to crop and "
        "resize images of any size set --config.data.crop=random_resized --config.data.cache=none"
        + (f", or if all have this size --config.data.image_size={height}" * (height == width))
      )
    return image

  def random_box(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, by timm's `RandomResizedCropAndInterpolation`."""
    low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
    for _ in range(10):
      area = rng.uniform(*self.scale) * width * height
      ratio = math.exp(rng.uniform(low, high))
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        return top, left, h, w
    # The largest central crop whose ratio is allowed.
    w = min(width, round(height * self.ratio[1]))
    h = min(height, round(width / self.ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w

  def _random(self, image_hwc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left, height, width = self.random_box(image_hwc.shape[0], image_hwc.shape[1], rng)
    kernels = INTERPOLATIONS[self.interpolation]
    kernel = kernels[rng.integers(len(kernels))]
    # Cropped before it is resized: pixels around the box must not leak in.
    crop_hwc = image_hwc[top : top + height, left : left + width]
    return resize(crop_hwc, self.image_size, self.image_size, kernel)

  def _centre(self, image_hwc: np.ndarray) -> np.ndarray:
    """timm's evaluation: short side to image_size / eval_fraction, bicubic, then the centre."""
    short, size = math.floor(self.image_size / self.eval_fraction), self.image_size
    sides = image_hwc.shape[:2]
    # Multiplied first: a ratio rounded before would lose a pixel of some long sides.
    h, w = (int(short * side / min(sides)) for side in sides)
    top, left = round((h - size) / 2), round((w - size) / 2)  # half to even, as in timm
    return resize(image_hwc, h, w, "bicubic")[top : top + size, left : left + size]


def decode(image: bytes, channels: int) -> np.ndarray:
  """Decodes a file of an image to uint8 [h, w, channels], as Pillow's `convert` does.

  Of levels of 16 bits the higher 8 are kept, grey ones too, which `convert` would clip to white.
  Transparency is dropped: the colours below it show. Colour profiles and orientation tags are not
  applied.

  Raises:
    CorruptError: if it is corrupt, no image, or of levels without a known white.
  """
  jpeg = _jpeg()
  if jpeg and image.startswith(b"\xff\xd8"):
    try:
      _, _, colours, _ = jpeg.decode_jpeg_header(image)
      if colours == "YCbCr" and channels == 3:
        return jpeg.decode_jpeg(image, "RGB")
      if colours == "Gray":
        return jpeg.decode_jpeg(image, "RGB" if channels == 3 else "GRAY")
    except ValueError:
      pass  # something is odd about the file; it is for Pillow to say what
  try:
    picture = _in_8_bits(PIL.Image.open(io.BytesIO(image)))
    picture.info.pop("transparency", None)  # else `convert` warns of a palette's
    picture = picture.convert("L" if channels == 1 else "RGB")
  except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
    reason = str(error).partition(" <_io")[0]  # Pillow names a buffer of ours
    raise CorruptError(f"an image of {len(image)} bytes cannot be decoded: {reason}") from None
  return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _in_8_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
  """The picture itself, or one of the higher 8 of its 16 bits, as Pillow makes of 16-bit colours.

  Raises:
    ValueError: for the modes I and F, whose levels are numbers of 32 bits.
  """
  # Pillow has given 16-bit files of these formats the mode I.
  if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
    return PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
  if picture.mode in ("I", "F"):
    raise ValueError(
      f"its levels are 32-bit numbers (Pillow's mode {picture.mode}), and nothing says which is "
      "white: save it with 8 or 16 bits to the channel"
    )
  return picture


@functools.cache
def _jpeg() -> ModuleType | None:
  """The package that decodes JPEG as Pillow does but faster, where it is installed."""
  try:
    import simplejpeg
  except ImportError as error:
    if multiprocessing.parent_process() is None:  # once, not in each worker too
      _log.warning("JPEG files are decoded by Pillow, which takes longer: %s", error)
    return None
  return simplejpeg
