"""`convmixer-plot`, or `python -m convmixer_jax.plot`: figures and a report for each workdir.

  python -m convmixer_jax.plot runs/digits
  python -m convmixer_jax.plot runs/a runs/b --out=runs/a_and_b

Writes `plots/*.png`, `plots/*.svg` and `report.html` into each workdir, of a run (which may still
be running) or of a sweep. The curves of several runs, overlaid, go to `--out`. `--block=4` also
draws every kernel of the fourth block. `--claimed="depth 4: 91.26"` draws a published accuracy next
to the one the sweep measured for that model.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
from types import ModuleType
from typing import Any

from absl import flags
import jax
from ml_collections import config_dict
import numpy as np

from convmixer_jax import cli
from convmixer_jax import config as config_lib
from convmixer_jax.data import batches
from convmixer_jax.errors import UserError, needs
from convmixer_jax.native import xla_cache
from convmixer_jax.parallel import sharding
from convmixer_jax.results import starts
from convmixer_jax.results.history import History, label, read_history, read_sweep
from convmixer_jax.training import build
from convmixer_jax.training.evaluate import restore_variables
from convmixer_jax.training.evaluator import Evaluator

_MISTAKES = 24  # images in a report


def planned(config: config_dict.ConfigDict, history: History) -> np.ndarray:
  """The planned schedule: epochs and learning rates, [at most 2000, 2].

  Empty until the run has written its first line of metrics, which gives the steps per epoch.
  """
  steps_per_epoch = history.steps_per_epoch()
  if steps_per_epoch is None:
    return np.zeros((0, 2))
  schedule = build.make_schedule(config, steps_per_epoch)
  last = config.run.epochs * steps_per_epoch - 1
  update_n = np.unique(np.linspace(0, last, 2000).round().astype(np.int32))
  rate_n = jax.vmap(schedule)(update_n)
  return np.stack([(update_n + 1) / steps_per_epoch, np.asarray(rate_n)], 1)


def draw_run(
  workdir: pathlib.Path, *, with_report: bool = True, block: int | None = None
) -> list[pathlib.Path]:
  """Writes the figures of a run and, optionally, its report; returns the files.

  Figures that need a missing checkpoint or missing data are left out, and the
  report says so.

  Args:
    workdir: of the run.
    with_report: also evaluate the run and write its report.
    block: also draw all kernels of this block, counted from 1.

  Raises:
    UserError: if `workdir` is not the workdir of a run, its model has no such block,
      or a package of the extra "plot" is missing.
  """
  figures, report = _drawings()
  config = _read_config(workdir, block)
  history = read_history(workdir)
  pictures = {"Curves": figures.curves([history])}
  if len(plan := planned(config, history)):
    pictures["Learning rate"] = figures.schedule([history], [plan])
  mistakes, notes = None, []
  m = config.model
  summary = {
    "model": f"ConvMixer-{m.dim}/{m.depth}, kernel {m.kernel_size}, patch {m.patch_size}, "
    f"{m.activation}",
    "data": f"{config.data.dataset}, {config.data.image_size} pixels, {m.num_classes} classes",
    "planned": f"{config.run.epochs} epochs",
    "seed": str(config.seed),
    **starts.summary(starts.read(workdir)),
  }
  try:
    mesh = sharding.make_mesh()
    variables, step = restore_variables(config, mesh, workdir)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    summary |= {"parameters": f"{count:,}", "checkpoint": f"step {step}, the latest readable one"}
    pictures |= _draw_weights(figures, variables["params"], f"{history.name}, step {step}", block)
    if with_report:
      evaluator = build.make_evaluator(config, mesh, config.data.eval_split)
      drawn, mistakes = _draw_answers(figures, report, evaluator, variables, step)
      pictures |= drawn
  except UserError as error:
    notes.append(f"Parts of this report are missing: {error}")
    print(f"note: {workdir}: {error}", file=sys.stderr)
  files = _save(figures, pictures, workdir / "plots")
  if with_report:
    page = report.run_report(
      history,
      _flat(config),
      _flat(config_lib.base()),
      summary=summary,
      pictures=_for_page(figures, pictures),
      notes=notes,
      mistakes=mistakes,
      pixelated=config.data.image_size < 64,
    )
    files.append(_write(workdir / "report.html", page))
  return files


def _flat(config: config_dict.ConfigDict) -> dict[str, Any]:
  return config_lib.flatten(json.loads(config_lib.to_json(config)))


def draw_sweep(
  workdir: pathlib.Path, *, with_report: bool = True, claimed: Mapping[str, float] | None = None
) -> list[pathlib.Path]:
  """Writes the figures of a sweep's finished runs and, optionally, a report; returns the files.

  Args:
    workdir: of the sweep.
    with_report: also write the report.
    claimed: see `figures.sweep`.

  Raises:
    UserError: if no run is finished yet, `claimed` names an unknown model, or a package
      of the extra "plot" is missing.
  """
  figures, report = _drawings()
  sweep, name = read_sweep(workdir), workdir.absolute().name
  known = [label(point.overrides) for point in sweep.points]
  if unknown := sorted(set(claimed or ()) - set(known)):
    raise UserError(
      f"--claimed: {workdir} has no finished run {unknown[0]!r}; it has: {'; '.join(known)}"
    )
  histories = [read_history(workdir / path, label) for path, label in sweep.directories.items()]
  pictures = {
    "Accuracy": figures.sweep(sweep, f"Sweep {name}", claimed),
    "Curves": figures.curves(histories),
  }
  files = _save(figures, pictures, workdir / "plots")
  if with_report:
    page = report.sweep_report(name, sweep, _for_page(figures, pictures))
    files.append(_write(workdir / "report.html", page))
  return files


def draw_together(workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> list[pathlib.Path]:
  """Writes the overlaid curves and learning rates of several runs; returns the files.

  Raises:
    UserError: if a directory is not the workdir of a run, or a package of the extra "plot" is
      missing.
  """
  figures, _ = _drawings()
  short = [path.absolute().name for path in workdirs]
  names = short if len(set(short)) == len(short) else [str(path) for path in workdirs]
  histories = [read_history(path, name) for path, name in zip(workdirs, names, strict=True)]
  configs = [config_lib.read_json(path / "config.json") for path in workdirs]
  plans = [planned(*pair) for pair in zip(configs, histories, strict=True)]
  pictures = {
    "Curves": figures.curves(histories),
    "Learning rate": figures.schedule(histories, plans),
  }
  return _save(figures, pictures, out)


def _read_config(workdir: pathlib.Path, block: int | None) -> config_dict.ConfigDict:
  """The config of a run; checks that its model has this block."""
  config = config_lib.read_json(workdir / "config.json")
  if block is not None and not 1 <= block <= config.model.depth:
    raise UserError(f"--block={block}: {workdir} has blocks 1 to {config.model.depth}")
  return config


def _draw_weights(
  figures: ModuleType, params: Any, title: str, block: int | None
) -> dict[str, Any]:
  depth = sum(name.startswith("blocks_") for name in params)
  kernels = [
    np.asarray(params[f"blocks_{i}"]["depthwise"]["kernel"])[:, :, 0] for i in range(depth)
  ]
  drawn, stem = {}, np.asarray(params["stem"]["kernel"])
  if stem.shape[:2] != (1, 1):  # a patch of one pixel has no pattern
    drawn["Patch embedding"] = figures.patch_filters(stem, title)
  if kernels:
    drawn["Depthwise kernels"] = figures.depthwise_kernels(kernels, title)
  if block is not None:
    name = f"{title}, block {block} of {depth}"
    drawn[f"Depthwise kernels of block {block}"] = figures.block_kernels(kernels[block - 1], name)
  return drawn


def _draw_answers(
  figures: ModuleType, report: ModuleType, evaluator: Evaluator, variables: Any, step: int
) -> tuple[dict[str, Any], Any]:
  """The confusion matrix, unless there are too many classes, and the section on mistakes."""
  predictions = evaluator.predict(variables)
  source = evaluator.batches.source
  names = list(source.class_names)
  chosen = predictions.confidently_wrong(_MISTAKES)
  numbers = evaluator.batches.readable()[chosen]
  images, *_ = batches.read(source, evaluator.batches.preprocess, numbers, [None] * len(numbers))
  wrong = [
    (int(index), image, source.describe(int(number)))
    for index, number, image in zip(chosen, numbers, images, strict=True)
  ]
  mistakes = report.mistakes_of(predictions, names, wrong)
  if len(names) > report.MATRIX_CLASSES:
    return {}, mistakes
  right, count = 100 * predictions.accuracy(), len(predictions.label_n)
  text = f"Step {step}: {right:.2f} % of {count:,} images are correct"
  matrix = predictions.confusion(len(names))
  drawn = figures.confusion(matrix, names, "Confusion matrix", text)
  return {"Confusion matrix": drawn}, mistakes


def _drawings() -> tuple[ModuleType, ModuleType]:
  """The modules of the figures and the page; only these need matplotlib and jinja2."""
  with needs("plot"):
    from convmixer_jax.results import figures, page
  return figures, page


def _save(
  figures: ModuleType, pictures: dict[str, Any], directory: pathlib.Path
) -> list[pathlib.Path]:
  named = {title.lower().replace(" ", "_"): figure for title, figure in pictures.items()}
  return [path for name, figure in named.items() for path in figures.save(figure, directory, name)]


def _for_page(figures: ModuleType, pictures: dict[str, Any]) -> dict[str, bytes]:
  """The figures as SVG without their titles, which are the page's headings."""
  return {title: figures.to_svg(figure, with_title=False) for title, figure in pictures.items()}


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
  partial = path.with_suffix(".partial")
  partial.write_text(text, encoding="utf-8")
  partial.replace(path)
  return path


def main(argv: Sequence[str]) -> None:
  """Draws each workdir on the command line, and prints the files written."""
  workdirs = [pathlib.Path(argument).expanduser() for argument in argv[1:]]
  if not workdirs:
    raise UserError("no workdir given; use python -m convmixer_jax.plot runs/digits")
  with_report, block = flags.FLAGS.report, flags.FLAGS.block
  claimed = _parse_claimed(flags.FLAGS.claimed)
  xla_cache.use_cache()
  runs = [path for path in workdirs if not (path / "sweep.jsonl").exists()]
  for path in runs:
    _read_config(path, block)  # fail before any work
  files = []
  for path in workdirs:
    if path in runs:
      files += draw_run(path, with_report=with_report, block=block)
    else:
      files += draw_sweep(path, with_report=with_report, claimed=claimed)
  if len(runs) > 1:
    files += draw_together(runs, pathlib.Path(flags.FLAGS.out).expanduser())
  print("\n".join(map(str, files)))


def _parse_claimed(texts: Sequence[str]) -> dict[str, float]:
  """Parses ["depth 4: 91.26", ...]."""
  claimed = {}
  for text in texts:
    name, _, accuracy = text.rpartition(":")
    try:
      claimed[name.strip()] = float(accuracy)
    except ValueError:
      raise UserError(
        f"--claimed={text!r} must be MODEL: PERCENT, such as 'depth 4: 91.26'"
      ) from None
  return claimed


def run() -> None:
  """Runs the command line."""
  flags.DEFINE_integer("block", None, "Also draw every kernel of this block, counted from 1.")
  flags.DEFINE_multi_string(
    "claimed", [], "MODEL: PERCENT, a published accuracy to draw in a sweep; repeatable."
  )
  flags.DEFINE_boolean("report", True, "Evaluate the run and write report.html.")
  flags.DEFINE_string("out", "runs/plots", "Directory for figures of several runs together.")
  cli.run(main)


if __name__ == "__main__":
  run()
