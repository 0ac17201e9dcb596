"""The runs of a sweep compared with each other."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter

from convmixer_jax.results.figures.style import MARKERS, SETTINGS, WIDTH, colours, plain_log
from convmixer_jax.results.history import SPLITS, Point, Sweep, label


def sweep(results: Sweep, title: str, claimed: Mapping[str, float] | None = None) -> Figure:
  """Accuracy against parameters and against relative time, as Cooper Union's figures 3a and 3b.

  Points of one colour share the first setting; the other settings are written next to each point.

  Args:
    results: the finished runs.
    title: title of the figure.
    claimed: published accuracies, as {`history.label` of a point's settings: percent}. Drawn as
      hollow diamonds at the parameters and time of our point, as in Cooper Union's figure 5.
  """
  series: dict[str, list[Point]] = {}
  for point in sorted(results.points, key=lambda point: point.parameters):
    series.setdefault(label(dict(list(point.overrides.items())[:1])), []).append(point)
  others = list(results.points[0].overrides)[1:]
  split = SPLITS["test" if results.metric == "test_accuracy" else "eval"]
  with matplotlib.rc_context(SETTINGS):
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    size, time = figure.subplots(1, 2, sharey=True)
    for axes, field in ((size, "parameters"), (time, "relative_time")):
      looks = zip(colours(len(series)), itertools.cycle(MARKERS), strict=False)
      for (name, points), (colour, marker) in zip(series.items(), looks, strict=True):
        look = {"color": colour, "marker": marker, "capsize": 3, "label": name or "all runs"}
        _draw_points(axes, points, field, others, look)
      if claimed:
        theirs = [point for point in results.points if label(point.overrides) in claimed]
        x = [getattr(point, field) for point in theirs]
        y = [claimed[label(point.overrides)] for point in theirs]
        axes.plot(x, y, "D", color="black", mfc="none", ms=9, label="claimed by the source")
      values = [getattr(point, field) for point in results.points]
      if max(values) > 8 * min(values):
        axes.set_xscale("log")
        plain_log(axes.xaxis)
    size.xaxis.set_major_formatter(EngFormatter(sep=""))
    size.set(xlabel="parameters", ylabel=f"accuracy, {split} [%]", title="By size")
    reference = label(results.reference().overrides) or "the only model"
    time.set(xlabel=f"time per epoch, relative to {reference}", title="By training time")
    size.margins(0.08, 0.1)
    size.legend(fontsize="small", loc="lower right")
    beside = "/".join(key.rpartition(".")[2] for key in others)
    runs = max(point.runs for point in results.points)
    notes = [f"The number at each point is {beside}"] * bool(others)
    notes += [f"mean ± standard deviation of {runs} seeds"] * (runs > 1)
    figure.suptitle(title)
    if notes:
      figure.supxlabel("; ".join(notes), fontsize="medium")
    return figure


def _draw_points(
  axes: Axes, points: Sequence[Point], field: str, others: Sequence[str], look: dict[str, Any]
) -> None:
  x = [getattr(point, field) for point in points]
  y = [100 * point.accuracy for point in points]
  error = [100 * point.deviation for point in points]
  axes.errorbar(x, y, error if any(error) else None, **look)
  for point, at in zip(points, zip(x, y, strict=True), strict=True):
    text = "/".join(str(point.overrides[key]) for key in others)
    written = axes.annotate(
      text, at, (0, 7), textcoords="offset points", ha="center", fontsize=9, zorder=4
    )
    written.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
