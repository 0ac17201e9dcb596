"""Decoding and cropping on the host: encoded images of any size to images of one size."""

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
# The kernels to choose from when resizing a random crop.
INTERPOLATIONS = {
  "random": ("bilinear", "bicubic"),
  "bilinear": ("bilinear",),
  "bicubic": ("bicubic",),
}


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Decodes and crops images to one size; only these steps need the host.

  Attributes:
    image_size: side of the result in pixels.
    crop: "none" requires images of this size; "random_resized" crops at random in
      training, and resizes and crops the centre in evaluation.
    scale, ratio: ranges of a random crop's area fraction and of its width / height.
    interpolation: how to resize a random crop: "bilinear", "bicubic", or "random",
      which picks one per image (timm's default). Evaluation is always bicubic.
    eval_fraction: side of the centre crop divided by the resized short side.

  Raises:
    ValueError: if the crop or the interpolation is unknown.
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
      UserError: if it has the wrong size and `crop` is "none".
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
        "resize images of any size, set --config.data.crop=random_resized --config.data.cache=none"
        + (f", or if all have this size, --config.data.image_size={height}" * (height == width))
      )
    return image

  def random_box(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, as in timm's `RandomResizedCropAndInterpolation`."""
    low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
    for _ in range(10):
      area = rng.uniform(*self.scale) * width * height
      ratio = math.exp(rng.uniform(low, high))
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        return top, left, h, w
    # Fall back to the largest central crop with an allowed ratio.
    w = min(width, round(height * self.ratio[1]))
    h = min(height, round(width / self.ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w

  def _random(self, image_hwc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left, height, width = self.random_box(image_hwc.shape[0], image_hwc.shape[1], rng)
    kernels = INTERPOLATIONS[self.interpolation]
    kernel = kernels[rng.integers(len(kernels))]
    # Crop before resizing, so that pixels outside the box do not leak in.
    crop_hwc = image_hwc[top : top + height, left : left + width]
    return resize(crop_hwc, self.image_size, self.image_size, kernel)

  def _centre(self, image_hwc: np.ndarray) -> np.ndarray:
    """timm's evaluation: short side to image_size / eval_fraction, bicubic, then centre crop."""
    short, size = math.floor(self.image_size / self.eval_fraction), self.image_size
    sides = image_hwc.shape[:2]
    # Multiply first: a rounded ratio would lose a pixel of some long sides.
    h, w = (int(short * side / min(sides)) for side in sides)
    top, left = round((h - size) / 2), round((w - size) / 2)  # half to even, as in timm
    return resize(image_hwc, h, w, "bicubic")[top : top + size, left : left + size]


def decode(image: bytes, channels: int) -> np.ndarray:
  """Decodes an image file to uint8 [h, w, channels], like Pillow's `convert`.

  16-bit values keep their high 8 bits, also in greyscale, which `convert` would clip to white. The
  alpha channel is dropped. Colour profiles and orientation tags are ignored.

  Raises:
    CorruptError: if it is corrupt, not an image, or has 32-bit values without a defined white.
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
      pass  # let Pillow decode it, or say what is wrong with it
  try:
    picture = _in_8_bits(PIL.Image.open(io.BytesIO(image)))
    picture.info.pop("transparency", None)  # else `convert` warns about palette transparency
    picture = picture.convert("L" if channels == 1 else "RGB")
  except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
    reason = str(error).partition(" <_io")[0]  # drop the repr of our buffer
    raise CorruptError(f"an image of {len(image)} bytes cannot be decoded: {reason}") from None
  return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _in_8_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
  """Reduces 16-bit values to their high 8 bits, as Pillow does for 16-bit colour images.

  Raises:
    ValueError: for the modes I and F, which have 32-bit values.
  """
  # Some versions of Pillow open 16-bit files of these formats in mode I.
  if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
    return PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
  if picture.mode in ("I", "F"):
    raise ValueError(
      f"it has 32-bit values (Pillow mode {picture.mode}), for which white is not defined: save it "
      "with 8 or 16 bits per channel"
    )
  return picture


@functools.cache
def _jpeg() -> ModuleType | None:
  """simplejpeg, which gives Pillow's pixels faster, or None if it is not installed."""
  try:
    import simplejpeg
  except ImportError as error:
    if multiprocessing.parent_process() is None:  # once, not in every worker
      _log.warning("JPEG files are decoded by Pillow, which is slower: %s", error)
    return None
  return simplejpeg
