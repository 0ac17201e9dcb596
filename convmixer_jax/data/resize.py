"""Image resizing on the host: the same pixels as Pillow's `Image.resize`, several times faster.

Uses `native/resize.cc` if there is a C++ compiler, and Pillow otherwise. The pixels are the
same. Rows are resized first, as in Pillow before version 13, with which the published
accuracies were measured. (Pillow 13 resizes columns first if an image shrinks more in
height than in width, which rounds some pixels differently.)
"""

from collections.abc import Callable
import ctypes
import functools
import logging
import multiprocessing
import pathlib

import numpy as np
import PIL.Image

from convmixer_jax.errors import check_name
from convmixer_jax.native.compiler import CompilerError, library

_log = logging.getLogger(__name__)
_SOURCE = pathlib.Path(__file__).parents[1] / "native" / "resize.cc"
_LEAST_ROW = 16  # bytes, the minimum for `resize.cc`
_RESAMPLING = {
  "bilinear": PIL.Image.Resampling.BILINEAR,
  "bicubic": PIL.Image.Resampling.BICUBIC,
}


def resize(image_hwc: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
  """Resizes uint8 [h, w, c] to [height, width, c], antialiased.

  Args:
    image_hwc: image of 1 or 3 channels; may be a view into a larger one.
    height, width: size of the result in pixels.
    interpolation: "bilinear" or "bicubic".

  Raises:
    ValueError: if the interpolation is unknown.
  """
  check_name("interpolation", interpolation, _RESAMPLING)
  old_height, old_width, channels = image_hwc.shape
  function = _compiled()
  is_narrow = min(old_width, width) * channels < _LEAST_ROW
  if function is None or is_narrow or image_hwc.strides[1:] != (channels, 1):
    return _by_pillow(image_hwc, height, width, interpolation)
  result = np.empty((height, width, channels), np.uint8)
  function(
    image_hwc.ctypes.data,
    image_hwc.strides[0],
    old_height,
    old_width,
    channels,
    height,
    width,
    interpolation == "bicubic",
    result.ctypes.data,
  )
  return result


def _by_pillow(image_hwc: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
  kernel = _RESAMPLING[interpolation]
  old_height, _, channels = image_hwc.shape
  image = PIL.Image.fromarray(image_hwc[..., 0] if channels == 1 else image_hwc)
  # In two steps, so that every version of Pillow resizes the rows first.
  image = image.resize((width, old_height), kernel).resize((width, height), kernel)
  return np.asarray(image).reshape(height, width, channels)


@functools.cache
def _compiled() -> Callable[..., None] | None:
  """The function in `resize.cc`, compiled on first use; None if it cannot be compiled."""
  try:
    # No fused multiply-add: Pillow does not use it, and a weight could round differently.
    function = ctypes.CDLL(str(library(_SOURCE, "-ffp-contract=off"))).resize
  except (CompilerError, OSError) as error:
    if multiprocessing.parent_process() is None:  # once, not in every worker
      _log.warning("images are resized by Pillow, which is six times slower: %s", error)
    return None
  pointer, integer = ctypes.c_void_p, ctypes.c_int
  function.argtypes = [pointer, ctypes.c_int64, *[integer] * 6, pointer]
  function.restype = None
  return function
