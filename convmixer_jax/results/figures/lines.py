"""Curves of one run, or of several runs overlaid."""

from collections.abc import Sequence
import itertools
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
import numpy as np

from convmixer_jax.results.figures.style import (
  COLOURS,
  MARKERS,
  SETTINGS,
  WIDTH,
  colours,
  plain_log,
)
from convmixer_jax.results.history import SPLITS, History

# Line style, marker and line width of each split.
_STYLES: dict[str, Any] = {
  "train": ((0, (2, 1.5)), "", 1.3),
  "eval": ("-", "o", 1.8),
  "eval_ema": ("-.", "s", 1.8),
  "test": ("", "*", 0),
  "train_eval": (":", "^", 1.8),
}


def curves(histories: Sequence[History]) -> Figure:
  """Loss and accuracy over epochs, coloured by run, or by split for a single run."""
  with matplotlib.rc_context(SETTINGS):
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _draw_series(loss, histories, "loss", 1)
    _draw_series(accuracy, histories, "accuracy", 100)
    loss.set(title="Loss", ylabel="cross-entropy [nats]")
    accuracy.set(title="Accuracy", ylabel="accuracy [%]")
    drawn = np.concatenate([line.get_ydata() for line in loss.lines] or [[]])
    if drawn.size and drawn.max() > 3 * drawn.min() > 0:
      loss.set_yscale("log")
      plain_log(loss.yaxis)
    for axes in (loss, accuracy):
      _epochs(axes)
    _legend(figure, _run_handles(histories) + _split_handles(histories))
    figure.suptitle(_title("Training and evaluation", histories))
    return figure


def schedule(histories: Sequence[History], planned: Sequence[np.ndarray]) -> Figure:
  """The learning rate over epochs, as planned by the config and as recorded.

  Args:
    histories: metrics of the runs.
    planned: for each run [n, 2]: epochs and learning rates; n may be 0.
  """
  one = len(histories) == 1
  looks = zip(colours(len(histories)), itertools.cycle(MARKERS), strict=False)
  with matplotlib.rc_context(SETTINGS):
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.subplots()
    # Decreasing widths keep equal schedules visible below each other.
    widths = np.linspace(min(1.8 * len(histories), 6), 1.8, len(histories))
    for history, plan, width, (colour, marker) in zip(
      histories, planned, widths, looks, strict=True
    ):
      axes.plot(*plan.T, color=colour, lw=width, label=f"{history.name}: planned")
      points, dark = history.series("train", "learning_rate"), COLOURS[1] if one else "0.2"
      look: dict[str, Any] = {"color": dark if one else "none", "mec": dark, "marker": marker}
      axes.plot(*points, **look, ms=5, ls="", label=f"{history.name}: recorded")
    axes.set_ylabel("learning rate")
    figure.suptitle(_title("Learning rate", histories))
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _epochs(axes)
    line = Line2D([], [], color=COLOURS[0] if one else "0.3", lw=1.8, label="planned by the config")
    dots = Line2D([], [], color=COLOURS[1] if one else "0.2", ls="", marker="o", ms=5)
    dots.set_label("recorded in training")
    if not one:
      dots.set_markerfacecolor("none")
    _legend(figure, [*_run_handles(histories, with_result=False), line, dots])
    return figure


def _draw_series(axes: Axes, histories: Sequence[History], key: str, factor: float) -> None:
  one = len(histories) == 1
  looks = zip(colours(len(histories)), itertools.cycle(MARKERS), strict=False)
  for history, (of_run, marker_of_run) in zip(histories, looks, strict=True):
    for split, of_split in zip(SPLITS, COLOURS, strict=False):
      style, marker, width = _STYLES[split]
      epochs, values = history.series(split, key)
      if epochs:
        if not marker and len(epochs) == 1:
          marker = "."  # a line of one point is invisible
        axes.plot(
          epochs,
          [factor * value for value in values],
          color=of_split if one else of_run,
          ls=style,
          marker=marker if one or split != "eval" else marker_of_run,
          ms=12 if marker == "*" else 5,
          lw=width,
          alpha=0.5 if split == "train" and not one else 1,
          label=f"{history.name}: {split}",
        )
  if not axes.lines:
    axes.text(0.5, 0.5, "nothing recorded yet", ha="center", transform=axes.transAxes)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
  """Adds a legend below the axes, in as many columns as fit."""
  if handles:
    for handle in handles:
      handle.set_label(textwrap.fill(str(handle.get_label()), 60))
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    columns = int(14 * figure.get_figwidth() // (longest + 8))
    ncols = min(max(columns, 1), len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols)


def _run_handles(histories: Sequence[History], with_result: bool = True) -> list[Line2D]:
  """One legend entry per run, with its last result; none for a single run."""
  if len(histories) == 1:
    return []
  looks = zip(colours(len(histories)), itertools.cycle(MARKERS), strict=False)
  names = [h.name + (_result(h, "eval") if with_result else "") for h in histories]
  return [
    Line2D([], [], color=colour, marker=marker, label=name)
    for name, (colour, marker) in zip(names, looks, strict=True)
  ]


def _split_handles(histories: Sequence[History]) -> list[Line2D]:
  one, handles = len(histories) == 1, []
  for (split, name), of_split in zip(SPLITS.items(), COLOURS, strict=False):
    if any(history.last(split) for history in histories):
      style, marker, width = _STYLES[split]
      text = name + (_result(histories[0], split) if one else "")
      colour = of_split if one else "0.3"
      line = Line2D([], [], color=colour, ls=style, marker=marker, lw=width, label=text)
      handles.append(line)
  return handles


def _result(history: History, split: str) -> str:
  last = history.last(split)
  return f" (last {100 * last['accuracy']:.2f} %)" if last else ""


def _title(text: str, histories: Sequence[History]) -> str:
  return f"{text} of {histories[0].name}" if len(histories) == 1 else f"{text} of several runs"


def _epochs(axes: Axes) -> None:
  axes.set_xlabel("epoch")
  axes.set_xlim(left=0)
  are_whole = axes.get_xlim()[1] > 3
  axes.xaxis.set_major_locator(MaxNLocator(8, integer=are_whole, steps=[1, 2, 5, 10]))
