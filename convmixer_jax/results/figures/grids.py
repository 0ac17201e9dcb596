"""Figures of weights as grids, and of the confusion matrix."""

from collections.abc import Sequence
import math
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
import numpy as np

from convmixer_jax.results.figures.style import SETTINGS, WIDTH

_WIDE = 2.5  # width over height of a grid that fills a figure


def patch_filters(kernel_hwcf: np.ndarray, title: str, most: int = 256) -> Figure:
  """The filters of the stem in a grid: in colour for three channels, else by sign of the mean.

  Args:
    kernel_hwcf: float [patch_size, patch_size, channels, dim].
    title: title of the figure.
    most: maximum number of filters to draw; takes the first ones.
  """
  channels, count = kernel_hwcf.shape[2:]
  kernel_fhwc = kernel_hwcf.transpose(3, 0, 1, 2)[:most]
  limit = _limit(kernel_fhwc)
  columns = _columns(len(kernel_fhwc), _WIDE)
  with matplotlib.rc_context(SETTINGS):
    figure = Figure(figsize=(WIDTH, WIDTH / _WIDE + 0.6), layout="compressed")
    axes = figure.subplots()
    scale = f"each in [-{limit:.2g}, {limit:.2g}]"
    if channels == 3:
      grid = _mosaic(0.5 + 0.5 * (kernel_fhwc / limit).clip(-1, 1), columns, 1.0)
      axes.imshow(grid, interpolation="none")
      how = f"Red, green and blue are the weights of these channels, {scale}; grey is 0."
    else:
      _draw_signed(axes, _mosaic(kernel_fhwc.mean(-1), columns, np.nan), limit, with_bar=True)
      how = "Orange is negative, white is 0, purple is positive"
      how += f"; mean of {channels} channels." if channels > 1 else "."
    shown = _shown(len(kernel_fhwc), count, "filters")
    size = f"{kernel_hwcf.shape[0]}x{kernel_hwcf.shape[1]} pixels"
    axes.set_axis_off()
    _describe(figure, title, f"{shown} of {size}. {how}")
    return figure


def depthwise_kernels(
  kernels_hwf: Sequence[np.ndarray], title: str, most: int = 64, blocks: int = 8
) -> Figure:
  """The depthwise kernels, with one grid and one scale per block.

  Args:
    kernels_hwf: float [kernel_size, kernel_size, dim] of each block, at least one.
    title: title of the figure.
    most: maximum number of kernels per block; takes the first ones.
    blocks: maximum number of blocks, evenly spaced from the first to the last.
  """
  depth, (size, _, dim) = len(kernels_hwf), kernels_hwf[0].shape
  chosen = np.unique(np.linspace(0, depth - 1, min(depth, blocks)).round().astype(int))
  columns = min(len(chosen), 4)
  rows = math.ceil(len(chosen) / columns)
  with matplotlib.rc_context(SETTINGS):
    figure = Figure(figsize=(WIDTH, 2.9 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, block in zip(panels, chosen, strict=False):
      kernel_fhw = kernels_hwf[block].transpose(2, 0, 1)[:most]
      limit = _limit(kernel_fhw)
      grid = _mosaic(kernel_fhw, _columns(len(kernel_fhw), 1), np.nan)
      _draw_signed(axes, grid, limit, with_bar=False)
      axes.set_title(f"block {block + 1} of {depth}, ±{limit:.2g}", fontsize=10)
    for axes in figure.axes:
      axes.set_axis_off()
    shown = _shown(min(most, dim), dim, "kernels")
    how = "Orange is negative, white is 0, purple is positive, up to the number at each block."
    _describe(figure, title, f"{shown} of {size}x{size} in each block. {how}")
    return figure


def block_kernels(kernel_hwf: np.ndarray, title: str) -> Figure:
  """Every kernel of one block in a grid, as in the Keras example.

  Args:
    kernel_hwf: float [kernel_size, kernel_size, dim].
    title: title of the figure.
  """
  size, _, dim = kernel_hwf.shape
  with matplotlib.rc_context(SETTINGS):
    figure = Figure(figsize=(WIDTH, WIDTH / _WIDE + 0.6), layout="compressed")
    axes = figure.subplots()
    grid = _mosaic(kernel_hwf.transpose(2, 0, 1), _columns(dim, _WIDE), np.nan)
    _draw_signed(axes, grid, _limit(kernel_hwf), with_bar=True)
    how = "Orange is negative, white is 0, purple is positive."
    axes.set_axis_off()
    _describe(figure, title, f"{_shown(dim, dim, 'kernels')} of {size}x{size}. {how}")
    return figure


def confusion(
  confusion_kl: np.ndarray, class_names: Sequence[str], title: str, text: str = ""
) -> Figure:
  """The confusion matrix: counts in the cells, coloured by their share of the true class.

  Args:
    confusion_kl: counts, int [true class, predicted class].
    class_names: of both.
    title: title of the figure.
    text: what is written below it.
  """
  total_k1 = confusion_kl.sum(1, keepdims=True)
  share_kl = confusion_kl / np.maximum(total_k1, 1)
  side = max(0.45 * len(class_names) + 2, 5)
  with matplotlib.rc_context({**SETTINGS, "axes.grid": False}):
    figure = Figure(figsize=(WIDTH, side), layout="compressed")
    axes = figure.subplots()
    # A power norm, so that an error rate of 1 % is still visible.
    image = axes.imshow(100 * share_kl, cmap="Blues", norm=PowerNorm(0.4, 0, 100))
    for (row, column), count in np.ndenumerate(confusion_kl):
      if count:
        colour = "white" if share_kl[row, column] > 0.2 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    for edge in np.arange(len(class_names) + 1) - 0.5:
      axes.axhline(edge, color="0.85", lw=0.8)
      axes.axvline(edge, color="0.85", lw=0.8)
    ticks, is_long = range(len(class_names)), max(map(len, class_names)) > 3
    turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if is_long else {}
    axes.set_xticks(ticks, class_names, **turned)
    axes.set_yticks(ticks, class_names)
    axes.set(xlabel="predicted class", ylabel="true class")
    _describe(figure, title, text)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("share of the true class [%]")
    return figure


def _limit(weights: np.ndarray) -> float:
  """The limit of a symmetric scale, which one in two hundred weights exceeds; never 0."""
  return float(np.quantile(np.abs(weights), 0.995)) or 1.0


def _columns(count: int, aspect: float) -> int:
  """Columns of a grid of `count` tiles that is `aspect` times as wide as high."""
  return math.ceil(math.sqrt(count * aspect))


def _mosaic(tile_nhw: np.ndarray, columns: int, gap: float) -> np.ndarray:
  """Arranges tiles [n, h, w, ...] row by row in one image, with a line of `gap` around each.

  Small tiles are enlarged, so that the lines stay thin in comparison.
  """
  enlarged = math.ceil(6 / tile_nhw.shape[1])
  tile_nhw = tile_nhw.repeat(enlarged, 1).repeat(enlarged, 2)
  n, h, w, *rest = tile_nhw.shape
  grid = np.full((math.ceil(n / columns) * (h + 1) + 1, columns * (w + 1) + 1, *rest), gap)
  for i, tile in enumerate(tile_nhw):
    top, left = i // columns * (h + 1) + 1, i % columns * (w + 1) + 1
    grid[top : top + h, left : left + w] = tile
  return grid


def _draw_signed(axes: Axes, grid_hw: np.ndarray, limit: float, with_bar: bool) -> None:
  """Draws weights by sign and magnitude, with 0 white and gaps (NaN) grey."""
  colours = matplotlib.colormaps["PuOr"].with_extremes(bad="0.75")
  masked = np.ma.masked_invalid(grid_hw)
  image = axes.imshow(masked, cmap=colours, vmin=-limit, vmax=limit, interpolation="none")
  if with_bar:
    axes.figure.colorbar(image, ax=axes, shrink=0.6, extend="both", label="weight")


def _shown(shown: int, count: int, noun: str) -> str:
  return f"All {count} {noun}" if shown == count else f"The first {shown} of {count} {noun}"


def _describe(figure: Figure, title: str, text: str) -> None:
  figure.suptitle(title)
  figure.supxlabel(text, fontsize="medium")
