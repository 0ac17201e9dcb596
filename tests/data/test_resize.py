import logging

import numpy as np
import PIL.Image
import pytest

from convmixer_jax.data import resize as resize_lib
from convmixer_jax.data.resize import resize
from convmixer_jax.native import compiler

KERNELS = {
  "bilinear": PIL.Image.Resampling.BILINEAR,
  "bicubic": PIL.Image.Resampling.BICUBIC,
}


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
  monkeypatch.setenv("CXX", "no-such-compiler")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  for function in (compiler.library, resize_lib._compiled):
    function.cache_clear()
  yield
  for function in (compiler.library, resize_lib._compiled):
    function.cache_clear()


def pillow(image_hwc, *sizes, kernel):
  """Resizes with Pillow to each (width, height) in turn."""
  image = PIL.Image.fromarray(image_hwc[..., 0] if image_hwc.shape[2] == 1 else image_hwc)
  for size in sizes:
    image = image.resize(size, kernel)
  return np.asarray(image).reshape(image.height, image.width, -1)


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_pillows_rows_first(interpolation, channels):
  """Uses noise, so that weights and rounding matter, and sums leave 0..255."""
  random = np.random.RandomState(0)
  for _ in range(60):
    old_height, old_width, height, width = random.randint(1, 300, 4)
    noise = random.randint(0, 256, (old_height + 3, old_width + 2, channels)).astype(np.uint8)
    image = noise[2 : 2 + old_height, 1 : 1 + old_width]
    theirs = pillow(image, (width, old_height), (width, height), kernel=KERNELS[interpolation])
    np.testing.assert_array_equal(resize(image, height, width, interpolation), theirs)


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize("size", [(75, 333, 32, 32), (200, 200, 233, 300), (32, 32, 32, 32)])
def test_pixels_are_pillows_where_any_version_takes_rows_first(interpolation, size):
  old_height, old_width, height, width = size
  image = np.random.RandomState(0).randint(0, 256, (old_height, old_width, 3)).astype(np.uint8)
  theirs = pillow(image, (width, height), kernel=KERNELS[interpolation])
  np.testing.assert_array_equal(resize(image, height, width, interpolation), theirs)


def test_the_library_is_compiled_where_there_is_a_compiler():
  """Without the library, the tests above would compare Pillow with itself."""
  try:
    compiler.library(resize_lib._SOURCE, "-ffp-contract=off")
  except compiler.CompilerError as error:
    pytest.skip(str(error))
  assert resize_lib._compiled()


def test_without_a_compiler_the_pixels_are_the_same_and_one_warning_says_so(no_compiler, caplog):
  image = np.random.RandomState(0).randint(0, 256, (200, 90, 3)).astype(np.uint8)
  with caplog.at_level(logging.WARNING):
    found = [resize(image, 64, 64, "bicubic") for _ in range(2)]
  (message,) = caplog.messages
  assert "resized by Pillow" in message
  assert "'no-such-compiler' cannot be run" in message
  compiler.library.cache_clear()
  theirs = pillow(image, (64, 200), (64, 64), kernel=KERNELS["bicubic"])
  for ours in found:
    np.testing.assert_array_equal(ours, theirs)


def test_an_unknown_interpolation_is_refused():
  with pytest.raises(ValueError, match=r"^interpolation is 'area'; allowed: bilinear, bicubic$"):
    resize(np.zeros((8, 8, 3), np.uint8), 4, 4, "area")
