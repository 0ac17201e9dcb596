"""The report of a run or a sweep: one self-contained HTML page, from `page.html.jinja`."""

import base64
from collections.abc import Collection, Mapping, Sequence
import dataclasses
import importlib.resources
import io
import json
import math
import statistics
from typing import Any

import jinja2
import numpy as np
import PIL.Image

from convmixer_jax.results.history import SPLITS, History, Sweep
from convmixer_jax.results.predictions import Predictions

# With more classes than this, a table of confused pairs replaces the confusion matrix.
MATRIX_CLASSES = 20
_CAPTIONS = {
  "Curves": "Training: averages since the previous point, on augmented images, with batch "
  "statistics. Evaluation: the whole split, not augmented, with running statistics.",
  "Depthwise kernels": "How each channel weighs its neighbourhood.",
  "Patch embedding": "The pattern in an image patch that each channel responds to.",
  "Confusion matrix": "Number of images per cell; correct predictions are on the diagonal.",
}


@dataclasses.dataclass(frozen=True)
class Table:
  """A table whose first cell names each row; `kind` is "numbers" or "words", for the others.

  `marked` has the indices of rows that stand out.
  """

  head: Sequence[str]
  rows: Sequence[Sequence[Any]]
  caption: str = ""
  kind: str = "numbers"
  marked: Collection[int] = ()


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A misclassified image as PNG, and ("predicted" or "true", class, probability)."""

  png: bytes
  described: str
  classes: Sequence[tuple[str, str, float]]


@dataclasses.dataclass(frozen=True)
class Section:
  """The content below one title, in this order; `picture` is SVG."""

  title: str
  table: Table | None = None
  notes: Sequence[str] = ()
  text: str = ""
  picture: bytes = b""
  mistakes: Sequence[Mistake] = ()

  @property
  def id(self) -> str:
    """The anchor for links."""
    return self.title.lower().replace(" ", "-")

  @property
  def caption(self) -> str:
    """The caption of the picture."""
    return _CAPTIONS.get(self.title, "")


def run_report(
  history: History,
  config: Mapping[str, Any],
  defaults: Mapping[str, Any],
  *,
  summary: Mapping[str, str],
  pictures: Mapping[str, bytes],
  notes: Sequence[str] = (),
  mistakes: Section | None = None,
  pixelated: bool = False,
) -> str:
  """Renders the report of one run.

  Args:
    history: metrics of the run.
    config, defaults: {"section.key": value}.
    summary: {name: value}, shown first.
    pictures: SVG files by section title.
    notes: what is missing, and why.
    mistakes: from `mistakes_of`, if the run could be evaluated.
    pixelated: show the pixels of enlarged images.
  """
  sections = [
    Section("Summary", Table((), list(summary.items()), kind="words"), notes),
    _results(history),
    *(Section(title, picture=svg) for title, svg in pictures.items()),
    *([mistakes] if mistakes else []),
    _config(config, defaults),
  ]
  return render(f"ConvMixer: {history.name}", sections, pixelated)


def _config(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Section:
  rows: list[list[str]] = []
  changed = []
  for key, value in config.items():
    default = defaults.get(key)
    if value != default:
      changed.append(len(rows))
    was = "" if value == default else json.dumps(default)
    rows.append([f"config.{key}", json.dumps(value), was])
  head = ["setting", "value", "default, if another"]
  text = f"{len(changed)} of {len(rows)} settings differ from the defaults; they are bold."
  return Section("Config", Table(head, rows, text, "words", changed))


def sweep_report(name: str, sweep: Sweep, pictures: Mapping[str, bytes]) -> str:
  """Renders the report of a sweep: its pictures by title, and a table of its points."""
  keys = list(sweep.points[0].overrides)
  split = SPLITS["test" if sweep.metric == "test_accuracy" else "eval"]
  rows = [
    [
      *(point.overrides[key] for key in keys),
      point.runs,
      f"{point.parameters:,}",
      f"{100 * point.accuracy:.2f}" + (f" ± {100 * point.deviation:.2f}" * (point.runs > 1)),
      f"{point.relative_time:.2f}",
    ]
    for point in sweep.points
  ]
  head = [*keys, "runs", "parameters", f"accuracy, {split} [%]", "relative time per epoch"]
  sections = [Section(title, picture=svg) for title, svg in pictures.items()]
  return render(f"Sweep: {name}", [*sections, Section("Results", Table(head, rows))])


def mistakes_of(
  predictions: Predictions,
  class_names: Sequence[str],
  wrong: Sequence[tuple[int, np.ndarray, str]],
) -> Section:
  """The most confident mistakes and, if there are many classes, the most frequent confusions.

  Args:
    predictions: predictions on the evaluation split.
    class_names: names of its labels.
    wrong: (index, uint8 [h, w, c], description) of each image, most confident first.
  """
  table = None
  if len(class_names) > MATRIX_CLASSES:
    totals = np.bincount(predictions.label_n, minlength=len(class_names))
    rows = [
      [f"{class_names[true]} → {class_names[other]}", times, f"{100 * times / totals[true]:.1f}"]
      for true, other, times in predictions.confused_pairs(MATRIX_CLASSES)
    ]
    head = ["true → predicted class", "images", "of the true class [%]"]
    caption = f"The most frequent confusions among {len(class_names)} classes"
    table = Table(head, rows, caption)
  p = predictions
  mistakes = []
  for index, image, described in wrong:
    predicted = "predicted", class_names[p.predicted_n[index]], p.probability_n[index]
    true = "true", class_names[p.label_n[index]], p.true_probability_n[index]
    mistakes.append(Mistake(_png(image), described, [predicted, true]))
  count = int((p.label_n != p.predicted_n).sum())
  text = (
    f"{count:,} of {len(p.label_n):,} images are misclassified. Below are the {len(wrong)} most "
    "confident mistakes, most confident first."
    if count
    else f"None of the {len(p.label_n):,} images is misclassified."
  )
  return Section("Mistakes", table, text=text, mistakes=mistakes)


def render(title: str, sections: Sequence[Section], pixelated: bool = False) -> str:
  """Renders a page with these sections, and links to them."""
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
  source = importlib.resources.files("convmixer_jax.results") / "page.html.jinja"
  template = environment.from_string(source.read_text("utf-8"))
  return template.render(title=title, sections=sections, pixelated=pixelated)


def _results(history: History) -> Section:
  rows = []
  for split, name in SPLITS.items():
    if last := history.last(split):
      best = max(history.series(split, "accuracy")[1], default=math.nan)
      top5 = last.get("top5_accuracy")
      accuracies = [last["accuracy"], best, *([] if top5 is None else [top5])]
      numbers = [last["step"], f"{last['epoch']:g}", f"{last['loss']:.4f}"]
      rows.append([name, *numbers, *(f"{100 * x:.2f}" for x in accuracies)])
  if not rows:
    return Section("Results", text="Nothing recorded yet.")
  head = ["", "last step", "epoch", "loss [nats]", "accuracy [%]", "best accuracy [%]"]
  head += ["top-5 accuracy [%]"] * (max(map(len, rows)) > len(head))
  rates = history.series("train", "images_per_sec")[1]
  rate = f"{statistics.median(rates):,.0f} images per second in training (median)." if rates else ""
  return Section("Results", Table(head, rows), text=rate)


def _png(image_hwc: np.ndarray) -> bytes:
  file = io.BytesIO()
  PIL.Image.fromarray(image_hwc[..., 0] if image_hwc.shape[-1] == 1 else image_hwc).save(
    file, "PNG"
  )
  return file.getvalue()
