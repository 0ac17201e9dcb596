"""The common style of all figures, and how they are saved.

The colours (Okabe and Ito's, and matplotlib's viridis, Blues and PuOr) are safe for
colour-blind readers. Whatever has its own colour also has its own marker or line style.
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
WIDTH = 11.0  # of all figures, in inches
SETTINGS: dict[Any, Any] = {
  "font.size": 10,
  "axes.titlesize": 11,
  "figure.titlesize": 12,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.alpha": 0.3,
  "legend.frameon": False,
  "savefig.dpi": 150,
  "svg.hashsalt": "convmixer_jax",  # fixed, so that the same figure gives the same file
}


def colours(count: int) -> Sequence:
  """`count` distinct colours: from `COLOURS` if it has enough, else from viridis."""
  if count <= len(COLOURS):
    return COLOURS[:count]
  return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0, 0.93, count)]


def plain_log(axis: Axis) -> None:
  """Labels a logarithmic axis with plain numbers such as 0.2 and 50, not powers of ten."""
  axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, *, with_title: bool = True) -> bytes:
  """Renders the figure as an SVG file; the same figure always gives the same bytes.

  Args:
    figure: to render.
    with_title: False removes its title, for a page that has it as a heading.
  """
  file, title = io.BytesIO(), figure.get_suptitle()
  if not with_title:
    figure.suptitle("")
  with matplotlib.rc_context(SETTINGS):
    figure.savefig(file, format="svg", metadata={"Date": None})
  if title:
    figure.suptitle(title)
  return file.getvalue()


def save(figure: Figure, directory: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Writes `name.png` and `name.svg`; creates the directory if needed."""
  directory.mkdir(parents=True, exist_ok=True)
  png, svg = directory / f"{name}.png", directory / f"{name}.svg"
  with matplotlib.rc_context(SETTINGS):
    figure.savefig(png)
  svg.write_bytes(to_svg(figure))
  return [png, svg]
