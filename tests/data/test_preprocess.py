import io
import logging
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest

from convmixer_jax.data import preprocess as preprocess_lib
from convmixer_jax.data.preprocess import Preprocess, decode
from convmixer_jax.errors import CorruptError, UserError


@pytest.fixture
def no_simplejpeg(monkeypatch):
  """Simulates that simplejpeg is not installed."""
  monkeypatch.setitem(sys.modules, "simplejpeg", None)
  preprocess_lib._jpeg.cache_clear()
  yield
  preprocess_lib._jpeg.cache_clear()


def photo(height, width):
  """Smooth colours with some noise, uint8 [height, width, 3]."""
  random = np.random.RandomState(height * width)
  coarse = PIL.Image.fromarray(random.randint(0, 256, (6, 5, 3)).astype(np.uint8))
  smooth = np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(int)
  return np.clip(smooth + random.randint(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def saved(image, format="JPEG", **options):
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def rotated_exif():
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # orientation: rotate by 90 degrees
  return exif


PHOTO = PIL.Image.fromarray(photo(75, 101))
FILES = {
  "444": saved(PHOTO, quality=95, subsampling=0),
  "422": saved(PHOTO, quality=75, subsampling=1),
  "420": saved(PHOTO, quality=50, subsampling=2),
  "progressive": saved(PHOTO, progressive=True),
  "grey": saved(PHOTO.convert("L")),
  "cmyk": saved(PHOTO.convert("CMYK")),
  "rgb": saved(PHOTO, keep_rgb=True),
  "turned": saved(PHOTO, exif=rotated_exif()),
  "png": saved(PHOTO, "PNG"),
  "palette": saved(PHOTO.convert("P"), "PNG"),
  "rubbish behind": saved(PHOTO) + b"rubbish",
}


def by_pillow(file, channels):
  image = PIL.Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB")
  return np.asarray(image).reshape(image.height, image.width, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_decoded_pixels_are_pillows(name, channels):
  ours = decode(FILES[name], channels)
  assert ours.dtype == np.uint8
  np.testing.assert_array_equal(ours, by_pillow(FILES[name], channels))


def png(levels, colour_type):
  """Encodes uint16 [h, w, channels] as 16-bit PNG; Pillow can only write greyscale ones."""
  height, width, _ = levels.shape
  header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

  def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + crc(name + content)

  def crc(content):
    return struct.pack(">I", zlib.crc32(content))

  parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


GREY_16 = np.arange(64).reshape(8, 8, 1) * 1040  # 0 to 65520
TIFF_16 = PIL.Image.fromarray(GREY_16[..., 0].astype(np.uint16))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
  "file",
  [
    png(GREY_16, 0),
    png(np.concatenate([GREY_16] * 3, -1), 2),
    png(np.concatenate([GREY_16, 65535 - GREY_16], -1), 4),
    png(np.concatenate([GREY_16] * 3 + [65535 - GREY_16], -1), 6),
    saved(TIFF_16, "PNG"),
    saved(TIFF_16, "TIFF"),
    saved(PIL.Image.fromarray(GREY_16[..., 0].astype(">u2")), "TIFF"),
    saved(TIFF_16, "PPM"),  # mode I
  ],
  ids=["grey", "rgb", "grey+alpha", "rgba", "pillow", "I;16", "I;16B", "I"],
)
def test_of_16_bits_the_higher_8_are_kept(file, channels):
  expected = np.repeat(GREY_16 >> 8, channels, -1)
  np.testing.assert_array_equal(decode(file, channels), expected)
  np.testing.assert_array_equal(Preprocess(8)(file, channels, None), expected)


COLOURS = PIL.Image.fromarray(photo(8, 8))
CLEAR = COLOURS.copy()
CLEAR.putalpha(0)
MODES = {
  "1": (COLOURS.convert("1"), "PNG"),
  "L": (COLOURS.convert("L"), "PNG"),
  "LA": (COLOURS.convert("LA"), "PNG"),
  "P": (COLOURS.convert("P"), "PNG"),
  "PA": (COLOURS.convert("P").convert("PA"), "TIFF"),
  "RGB": (COLOURS, "PNG"),
  "RGBA": (CLEAR, "PNG"),
  "CMYK": (COLOURS.convert("CMYK"), "TIFF"),
  "YCbCr": (COLOURS.convert("YCbCr"), "TIFF"),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_pillow(mode):
  image, file_format = MODES[mode]
  file = saved(image, file_format)
  assert PIL.Image.open(io.BytesIO(file)).mode == mode
  for channels in (1, 3):
    np.testing.assert_array_equal(decode(file, channels), by_pillow(file, channels))
  if mode == "RGBA":  # the colour of transparent pixels
    np.testing.assert_array_equal(decode(file, 3), np.asarray(COLOURS))


def test_a_palette_may_be_transparent():
  palette = COLOURS.convert("P")
  file = saved(palette, "PNG", transparency=bytes(range(256)))
  np.testing.assert_array_equal(decode(file, 3), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_levels_without_a_known_white_are_refused(kind):
  file = saved(PIL.Image.fromarray(np.full((8, 8), 200, kind)), "TIFF")
  mode = {np.float32: "F", np.int32: "I"}[kind]
  for channels in (1, 3):
    with pytest.raises(
      CorruptError, match=f"mode {mode}.*white is not defined: save it with 8 or 16"
    ):
      decode(file, channels)


def test_an_image_too_large_for_pillow_is_corrupt(monkeypatch):
  monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 31)
  with pytest.raises(CorruptError, match=r"cannot be decoded: Image size \(64 pixels\) exceeds"):
    decode(encoded(8, 8), 3)


def test_a_photo_is_not_decoded_by_pillow(monkeypatch):
  pytest.importorskip("simplejpeg")
  monkeypatch.setattr(PIL.Image, "open", None)
  for name in ("444", "420", "grey", "progressive"):
    assert decode(FILES[name], 3).shape == (75, 101, 3)


def test_without_simplejpeg_pillow_decodes_and_one_warning_says_so(no_simplejpeg, caplog):
  with caplog.at_level(logging.WARNING):
    for file in (FILES["420"], FILES["444"]):
      np.testing.assert_array_equal(decode(file, 3), by_pillow(file, 3))
  (message,) = caplog.messages
  assert "decoded by Pillow, which is slower" in message
  assert "simplejpeg" in message


@pytest.mark.parametrize(
  ("interpolation", "kernel"),
  [("bilinear", PIL.Image.Resampling.BILINEAR), ("bicubic", PIL.Image.Resampling.BICUBIC)],
)
def test_a_random_crop_is_pillows_of_the_same_box(interpolation, kernel):
  preprocess = Preprocess(32, "random_resized", interpolation=interpolation)
  image = PIL.Image.open(io.BytesIO(FILES["420"])).convert("RGB")
  for seed in range(20):
    ours = preprocess(FILES["420"], 3, np.random.default_rng(seed))
    top, left, h, w = preprocess.random_box(75, 101, np.random.default_rng(seed))
    assert 0.07 < h * w / (75 * 101) <= 1
    crop = image.crop((left, top, left + w, top + h))
    theirs = crop.resize((32, h), kernel).resize((32, 32), kernel)
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_random_interpolation_is_either():
  kinds = {
    name: Preprocess(32, "random_resized", interpolation=name)
    for name in ("random", "bilinear", "bicubic")
  }
  counts = {"bilinear": 0, "bicubic": 0}
  for seed in range(40):
    crops = {name: p(FILES["444"], 3, np.random.default_rng(seed)) for name, p in kinds.items()}
    assert not np.array_equal(crops["bilinear"], crops["bicubic"])
    for name in counts:
      counts[name] += np.array_equal(crops["random"], crops[name])
  assert sum(counts.values()) == 40
  assert min(counts.values()) > 10


def encoded(width, height, mode="RGB"):
  gradient = np.linspace(0, 255, width)[None, :, None] + np.zeros((height, 1, 3))
  image, file = PIL.Image.fromarray(gradient.astype(np.uint8)).convert(mode), io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()


def pillow_centre(width, height, resized, left, top):
  image = PIL.Image.open(io.BytesIO(encoded(width, height)))
  image = image.resize(resized, PIL.Image.Resampling.BICUBIC)
  return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.mark.parametrize(
  ("size", "resized", "left", "top"),
  [  # timm's geometry for 224 pixels and a crop fraction of 0.96
    ((500, 375), (310, 233), 43, 4),
    ((375, 500), (233, 310), 4, 43),
    ((224, 224), (233, 233), 4, 4),
    ((235, 233), (235, 233), 6, 4),  # 5.5 rounds to 6
    ((237, 233), (237, 233), 6, 4),  # 6.5 rounds to 6
    ((586, 293), (466, 233), 121, 4),  # an aspect ratio of exactly 2 is kept
  ],
)
def test_centre_crop_is_timms(size, resized, left, top):
  ours = Preprocess(224, "random_resized")(encoded(*size), 3, None)
  np.testing.assert_array_equal(ours, pillow_centre(*size, resized, left, top))


def test_random_crops_cover_the_range_of_areas_and_ratios():
  """The gradient along the width shows the position and the width of a crop."""
  preprocess, rng = Preprocess(32, "random_resized"), np.random.default_rng(0)
  image = encoded(200, 200)
  crops = [preprocess(image, 3, rng).astype(float)[..., 0] for _ in range(300)]
  widths = [(crop[0, -1] - crop[0, 0]) / 255 for crop in crops]
  assert 0.2 < min(widths) < 0.35  # sqrt(0.08 * 3/4) = 0.24
  assert max(widths) > 0.9
  assert min(crop[0, 0] for crop in crops) < 10
  assert max(crop[0, -1] for crop in crops) > 245
  whole = Preprocess(32, "random_resized", scale=(1.0, 1.0), ratio=(1.0, 1.0))
  crop = whole(image, 3, rng)
  assert crop[0, 0, 0] < 5
  assert crop[0, -1, 0] > 250


def test_grey_pictures_become_colour_where_the_dataset_is():
  assert Preprocess(8)(encoded(8, 8, "L"), 3, None).shape == (8, 8, 3)
  assert Preprocess(8)(encoded(8, 8, "RGB"), 1, None).shape == (8, 8, 1)


def test_errors():
  with pytest.raises(UserError, match=r"10x12 pixels, .*image_size is 8.*random_resized"):
    Preprocess(8)(encoded(12, 10), 3, None)
  with pytest.raises(UserError, match="of 50 bytes cannot be decoded"):
    Preprocess(8)(encoded(8, 8)[:50], 3, None)
  with pytest.raises(UserError, match="of 4 bytes cannot be decoded"):
    Preprocess(8)(b"JPEG", 3, None)


@pytest.mark.parametrize(("name", "value"), [("crop", "center"), ("interpolation", "area")])
def test_unknown_names_are_refused(name, value):
  with pytest.raises(ValueError, match=f"^{name} is '{value}'; allowed: (none|random), "):
    Preprocess(8, **{name: value})
