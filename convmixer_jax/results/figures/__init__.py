"""Figures of a run or a sweep. Only this package needs matplotlib."""

from convmixer_jax.results.figures.grids import (
  block_kernels,
  confusion,
  depthwise_kernels,
  patch_filters,
)
from convmixer_jax.results.figures.lines import curves, schedule
from convmixer_jax.results.figures.scatter import sweep
from convmixer_jax.results.figures.style import WIDTH, save, to_svg

__all__ = [
  "WIDTH",
  "block_kernels",
  "confusion",
  "curves",
  "depthwise_kernels",
  "patch_filters",
  "save",
  "schedule",
  "sweep",
  "to_svg",
]
