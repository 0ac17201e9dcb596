"""The look that all pictures share, and their files.

Colours are Okabe and Ito's, and matplotlib's viridis, Blues and PuOr, which colour-blind
readers can tell apart; what has a colour of its own has a marker or a line style too.
"""

from collections.abc import Sequence
import io
import pathlib
from typing import Any

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*<>"
SETTINGS: dict[Any, Any] = {
  "font.size": 10,
  "axes.titlesize": 11,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.alpha": 0.3,
  "legend.frameon": False,
  "savefig.dpi": 150,
  "savefig.bbox": "tight",
  "svg.hashsalt": "convmixer_jax",  # else each picture would differ from the last one of the same
}


def colours(count: int) -> Sequence:
  """So many colours: of a list, or where it is too short from dark blue to yellow."""
  if count <= len(COLOURS):
    return COLOURS[:count]
  return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0, 0.93, count)]


def plain_log(axis: Axis) -> None:
  """Numbers as 0.2 and 50 on a logarithmic axis, not as powers."""
  axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure) -> bytes:
  """The picture as an SVG file, the same bytes for the same figure."""
  file = io.BytesIO()
  with matplotlib.rc_context(SETTINGS):
    figure.savefig(file, format="svg", metadata={"Date": None})
  return file.getvalue()


def save(figure: Figure, directory: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Writes `name.png` and `name.svg`; makes the directory if need be."""
  directory.mkdir(parents=True, exist_ok=True)
  png, svg = directory / f"{name}.png", directory / f"{name}.svg"
  with matplotlib.rc_context(SETTINGS):
    figure.savefig(png)
  svg.write_bytes(to_svg(figure))
  return [png, svg]
