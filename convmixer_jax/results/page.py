"""A run on one page of HTML, which needs no other file and loads nothing."""

import base64
from collections.abc import Iterable, Mapping, Sequence
import html
import io
import json
import math
import statistics
import string
from typing import Any

import numpy as np
import PIL.Image

from convmixer_jax.results.history import SPLITS, History, Sweep
from convmixer_jax.results.predictions import Predictions

# With more classes than these, a table of confused pairs takes the place of the matrix.
MATRIX_CLASSES = 20

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
nav a { margin-right: 1rem; white-space: nowrap; }
figure { margin: 1rem 0; }
figure > img { max-width: 100%; height: auto; background: white; padding: .5rem;
  border-radius: .5rem; box-sizing: border-box; }
figcaption, .note { font-size: .9rem; opacity: .85; }
.note { background: var(--soft); padding: .5rem 1rem; border-radius: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .9rem; opacity: .85; padding-bottom: .5rem; }
th, td { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid var(--line); }
tbody th { font-weight: normal; }
.numbers th:not(:first-child), .numbers td { text-align: right; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.mistakes figure { margin: 0; }
.mistakes img { width: 8rem; padding: 0; border-radius: 0; image-rendering: $rendering; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<nav>$links</nav>
</header>
<main>
$sections
</main>
</body>
</html>
""")


def run_report(
  history: History,
  config: Mapping[str, Any],
  *,
  summary: Mapping[str, str],
  pictures: Mapping[str, bytes],
  notes: Sequence[str] = (),
  answers: str = "",
  pixelated: bool = False,
) -> str:
  """The page of one run.

  Args:
    history: of the run.
    config: {"section.key": value}.
    summary: what comes first, by name.
    pictures: SVG files by the title of their section.
    notes: what is missing, and why.
    answers: HTML of `answers_html`, if the run could be evaluated.
    pixelated: whether the images in it are small, and show their pixels.
  """
  sections = {
    "Summary": _summary(summary) + "".join(f'<p class="note">{_text(note)}</p>' for note in notes),
    "Results": _results(history),
    **{title: _picture(svg, title, _CAPTIONS.get(title, "")) for title, svg in pictures.items()},
    **({"Mistakes": answers} if answers else {}),
    "Config": _table(
      ["setting", "value"],
      [[f"config.{key}", json.dumps(value)] for key, value in config.items()],
      kind="words",
    ),
  }
  return _page(f"ConvMixer: {history.name}", sections, pixelated)


def sweep_report(name: str, sweep: Sweep, pictures: Mapping[str, bytes]) -> str:
  """The page of a sweep: its pictures by title, and a table of its points."""
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
  sections = {title: _picture(svg, title, "") for title, svg in pictures.items()}
  return _page(f"Sweep: {name}", {**sections, "Results": _table(head, rows)})


def answers_html(
  predictions: Predictions,
  class_names: Sequence[str],
  wrong: Sequence[tuple[int, np.ndarray, str]],
) -> str:
  """The most frequent confusions of many classes, and the most confidently wrong images.

  Args:
    predictions: of the evaluation split.
    class_names: of its labels.
    wrong: number, uint8 [h, w, c] and description of each image, the most confident first.
  """
  table = ""
  if len(class_names) > MATRIX_CLASSES:
    totals = np.bincount(predictions.label_n, minlength=len(class_names))
    rows = [
      [f"{class_names[true]} → {class_names[other]}", times, f"{100 * times / totals[true]:.1f}"]
      for true, other, times in predictions.confused_pairs(MATRIX_CLASSES)
    ]
    head = ["true → predicted class", "images", "of the true class [%]"]
    table = _table(head, rows, f"The most frequent confusions of {len(class_names)} classes")
  mistakes = "".join(
    f'<figure><img alt="{_text(described)}" src="{_png(image)}"><figcaption>'
    f"predicted: <strong>{_text(class_names[predictions.predicted_n[index]])}</strong>, "
    f"{_percent(predictions.probability_n[index])}<br>"
    f"true: <strong>{_text(class_names[predictions.label_n[index]])}</strong>, "
    f"{_percent(predictions.true_probability_n[index])}<br>{_text(described)}</figcaption></figure>"
    for index, image, described in wrong
  )
  count = int((predictions.label_n != predictions.predicted_n).sum())
  told = (
    f"{count:,} of {len(predictions.label_n):,} images are wrong. Below: the {len(wrong)} with the "
    "highest probability of a wrong class, that first."
    if count
    else f"None of the {len(predictions.label_n):,} images is wrong."
  )
  return f'{table}<p>{told}</p><div class="mistakes">{mistakes}</div>'


_CAPTIONS = {
  "Curves": "Training: averages since the point before, on augmented images, with the statistics "
  "of each batch. Evaluation: the whole split, as it is, with the running statistics.",
  "Depthwise kernels": "What a channel looks at around each position, block by block.",
  "Patch embedding": "What a channel looks for in a patch of the image.",
  "Confusion matrix": "Number of images in each cell; right answers are on the diagonal.",
}


def _page(title: str, sections: Mapping[str, str], pixelated: bool = False) -> str:
  ids = {name: name.lower().replace(" ", "-") for name in sections}
  return _PAGE.substitute(
    title=_text(title),
    rendering="pixelated" if pixelated else "auto",
    links=" ".join(f'<a href="#{ids[name]}">{_text(name)}</a>' for name in sections),
    sections="\n".join(
      f'<section id="{ids[name]}">\n<h2>{_text(name)}</h2>\n{body}\n</section>'
      for name, body in sections.items()
    ),
  )


def _summary(summary: Mapping[str, str]) -> str:
  rows = "".join(
    f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
    for name, value in summary.items()
  )
  return f"<table><tbody>{rows}</tbody></table>"


def _results(history: History) -> str:
  rows = []
  for split, name in SPLITS.items():
    if last := history.last(split):
      best = max(history.series(split, "accuracy")[1], default=math.nan)
      top5 = last.get("top5_accuracy")
      accuracies = [last["accuracy"], best, *([] if top5 is None else [top5])]
      numbers = [last["step"], f"{last['epoch']:g}", f"{last['loss']:.4f}"]
      rows.append([name, *numbers, *(f"{100 * x:.2f}" for x in accuracies)])
  if not rows:
    return "<p>Nothing is recorded yet.</p>"
  head = ["", "last step", "epoch", "loss [nats]", "accuracy [%]", "best accuracy [%]"]
  head += ["top-5 accuracy [%]"] * (max(map(len, rows)) > len(head))
  rates = history.series("train", "images_per_sec")[1]
  rate = f"<p>{statistics.median(rates):,.0f} images per second in training (median).</p>"
  return _table(head, rows) + (rate if rates else "")


def _table(
  head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", kind: str = "numbers"
) -> str:
  """The first column names the row; `kind` is "numbers" if the others are such, or "words"."""
  body = "".join(
    f'<tr><th scope="row">{_text(str(first))}</th>'
    f"{''.join(f'<td>{_text(str(cell))}</td>' for cell in rest)}</tr>"
    for first, *rest in rows
  )
  top = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
  told = f"<caption>{_text(caption)}</caption>" if caption else ""
  return (
    f'<div class="scroll"><table class="{kind}">{told}<thead><tr>{top}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def _picture(svg: bytes, alt: str, caption: str) -> str:
  # An image of its own, for the names inside several SVG files would clash in one page.
  source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
  told = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
  return f'<figure><img alt="{_text(alt)}" src="{source}">{told}</figure>'


def _png(image_hwc: np.ndarray) -> str:
  file = io.BytesIO()
  PIL.Image.fromarray(image_hwc[..., 0] if image_hwc.shape[-1] == 1 else image_hwc).save(
    file, "PNG"
  )
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _percent(probability: float) -> str:
  return f"{100 * probability:.1f}\N{NO-BREAK SPACE}%"


def _text(text: str) -> str:
  return html.escape(text)
