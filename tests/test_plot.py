"""Figures and report of a tiny run, checked against its files and its model."""

import base64
import html
import html.parser
import io
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax import plot
from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError
from convmixer_jax.optim.schedules import make_schedule
from convmixer_jax.parallel import sharding
from convmixer_jax.results import figures, starts
from convmixer_jax.results import page as report
from convmixer_jax.results.history import History, read_history
from convmixer_jax.results.predictions import Predictions
from convmixer_jax.training.build import make_model
from convmixer_jax.training.evaluate import restore_variables
from convmixer_jax.training.loop import train
from tests.checkpoint.test_manager import truncate

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow
DIGITS = ROOT / "configs" / "digits.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a small model after 44 steps, with checkpoints at 22 and 44."""
  workdir = tmp_path_factory.mktemp("tiny")
  config = config_lib.read(DIGITS)
  config.model.update(dim=8, depth=2, kernel_size=3, patch_size=2)
  config.step.ema_decay = 0.9
  config.run.update(epochs=2, log_every_steps=4, eval_every_epochs=1)
  assert train(config, workdir) is None
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "tiny")


@pytest.fixture
def drawn(monkeypatch):
  """Collects the figures by file name instead of writing them."""
  found = {}

  def save(figure, directory, name):
    found[name] = figure
    return []

  monkeypatch.setattr(figures, "save", save)
  return found


class Page(html.parser.HTMLParser):
  """Parses the links, the table cells and the text of a page."""

  def __init__(self, text):
    super().__init__()
    self.references, self.cells, self.text = [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.references += [value for name, value in attrs if name in ("src", "href", "srcset")]
    if tag in ("td", "th"):
      self.cells.append("")
    self.is_cell = tag in ("td", "th")

  def handle_endtag(self, tag):
    self.is_cell = False

  def handle_data(self, data):
    self.text += data
    if self.cells and self.is_cell:
      self.cells[-1] += data

  def pixels(self):
    start = "data:image/png;base64,"
    pngs = [r[len(start) :] for r in self.references if r.startswith(start)]
    return [np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(png)))) for png in pngs]


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def answers_by_hand(workdir, step=None):
  """Images and labels of the test split, and the predicted probabilities of a checkpoint."""
  config = config_lib.read_json(workdir / "config.json")
  variables, _ = restore_variables(config, sharding.make_mesh(), workdir, step)
  source = open_source("digits", "test")
  image = np.float32((source.images / 255 - config.augment.mean) / config.augment.std)
  model = make_model(config, sharding.make_mesh(jax.devices()[:1]))
  logits = model.apply(jax.device_get(variables), image)
  return source.images, source.labels, np.asarray(jax.nn.softmax(logits))


def test_pictures_show_the_metrics_and_the_weights_of_the_run(workdir, drawn):
  plot.draw_run(workdir, with_report=False)
  of_split = {
    split: [x for x in lines(workdir) if x["split"] == split] for split in ("train", "eval")
  }
  loss, accuracy = drawn["curves"].axes
  for split, expected in of_split.items():
    (line,) = (x for x in loss.lines if x.get_label() == f"tiny: {split}")
    assert list(line.get_xdata()) == [x["epoch"] for x in expected]
    assert list(line.get_ydata()) == [x["loss"] for x in expected]
    (line,) = (x for x in accuracy.lines if x.get_label() == f"tiny: {split}")
    assert list(line.get_ydata()) == [100 * x["accuracy"] for x in expected]
  planned, recorded = drawn["learning_rate"].axes[0].lines
  assert list(recorded.get_ydata()) == [x["learning_rate"] for x in of_split["train"]]
  # The plan is computed independently of the recorded values, and goes through them.
  np.testing.assert_allclose(
    np.interp(recorded.get_xdata(), *planned.get_data()), recorded.get_ydata(), atol=1e-6
  )
  config = config_lib.read_json(workdir / "config.json")
  variables, _ = restore_variables(config, sharding.make_mesh(), workdir, 44)
  kernel = np.asarray(variables["params"]["blocks_1"]["depthwise"]["kernel"])
  grid = drawn["depthwise_kernels"].axes[1].images[0].get_array()
  np.testing.assert_array_equal(grid[1:7:2, 1:7:2], kernel[:, :, 0, 0])  # pixels are doubled
  grid = drawn["patch_embedding"].axes[0].images[0].get_array()
  np.testing.assert_array_equal(
    grid[1:7:3, 1:7:3], np.asarray(variables["params"]["stem"]["kernel"])[:, :, 0, 0]
  )
  assert drawn["patch_embedding"].get_suptitle() == "tiny, step 44"
  assert "confusion_matrix" not in drawn  # it would need the data


def test_report_of_a_run(workdir, drawn):
  plot.draw_run(workdir)
  images, labels, probabilities = answers_by_hand(workdir)
  predicted = probabilities.argmax(1)
  matrix = np.zeros((10, 10), int)
  np.add.at(matrix, (labels, predicted), 1)
  axes = drawn["confusion_matrix"].axes[0]
  shown = {text.get_position()[::-1]: int(text.get_text()) for text in axes.texts}
  assert shown == {where: count for where, count in np.ndenumerate(matrix) if count}

  page = Page((workdir / "report.html").read_text())
  (wrong,) = np.nonzero(predicted != labels)
  worst = sorted(wrong, key=lambda i: -probabilities[i].max())[:24]
  assert len(worst) == 24
  np.testing.assert_array_equal(page.pixels(), images[worst][..., 0])
  first = worst[0]
  assert (
    f"predicted: {predicted[first]}, {100 * probabilities[first].max():.1f}\xa0%"
    f"true: {labels[first]}, {100 * probabilities[first, labels[first]]:.1f}\xa0%example {first}"
  ) in page.text
  assert f"{len(wrong)} of 360 images are misclassified" in page.text

  assert all(r.startswith(("data:image/", "#")) for r in page.references)
  assert sum(r.startswith("data:image/svg+xml") for r in page.references) == 5
  config = config_lib.flatten(json.loads((workdir / "config.json").read_text()))
  defaults = config_lib.flatten(json.loads(config_lib.to_json(config_lib.base())))
  for key, value in config.items():
    where = page.cells.index(f"config.{key}")
    assert json.loads(page.cells[where + 1]) == value
    default = page.cells[where + 2]
    assert (json.loads(default) if default else value) == defaults[key]
    assert bool(default) == (value != defaults[key])
  (start,) = starts.read(workdir)
  for name, said in starts.summary([start]).items():
    assert page.cells[page.cells.index(name) + 1] == said
  last = [line for line in lines(workdir) if line["split"] == "eval_ema"][-1]
  where = page.cells.index("evaluation, averaged weights")
  assert page.cells[where + 1 : where + 5] == [
    "44", "2", f"{last['loss']:.4f}", f"{100 * last['accuracy']:.2f}"
  ]  # fmt: skip
  parameters = sum(x.size for x in jax.tree.leaves(answers_parameters(workdir)))
  assert f"{parameters:,}" in page.cells


def answers_parameters(workdir):
  config = config_lib.read_json(workdir / "config.json")
  return restore_variables(config, sharding.make_mesh(), workdir)[0]["params"]


def test_the_newest_readable_checkpoint_counts(workdir, drawn):
  truncate(workdir / "checkpoints" / "44")
  plot.draw_run(workdir)
  _, labels, probabilities = answers_by_hand(workdir, 22)
  right = 100 * (probabilities.argmax(1) == labels).mean()
  text = drawn["confusion_matrix"].get_supxlabel()
  assert text == f"Step 22: {right:.2f} % of 360 images are correct"


def test_a_run_that_has_just_begun(workdir, drawn, capsys):
  shutil.rmtree(workdir / "checkpoints")
  text = (workdir / "metrics.jsonl").read_text()
  (workdir / "metrics.jsonl").write_text(text.splitlines(keepends=True)[0] + '{"step": 8, "epo')
  files = plot.draw_run(workdir)
  assert sorted(drawn) == ["curves", "learning_rate"]
  page = Page(files[-1].read_text())
  assert "Parts of this report are missing" in page.text
  assert "has no checkpoint" in page.text
  assert "has no checkpoint" in capsys.readouterr().err
  assert "training" in page.cells
  assert "evaluation" not in page.cells
  (workdir / "metrics.jsonl").unlink()
  drawn.clear()
  page = Page(plot.draw_run(workdir)[-1].read_text())
  assert sorted(drawn) == ["curves"]
  assert "Nothing recorded yet." in page.text
  assert "nan" not in page.text.lower()


def test_data_that_are_not_here_leave_the_weights(workdir, drawn):
  config = json.loads((workdir / "config.json").read_text())
  config["data"].update(dataset="folder", data_dir=str(workdir / "none"))
  (workdir / "config.json").write_text(json.dumps(config))
  page = Page(plot.draw_run(workdir)[-1].read_text())
  assert "depthwise_kernels" in drawn
  assert "confusion_matrix" not in drawn
  assert f"config.data.data_dir={workdir / 'none'} is not a directory" in page.text


def test_colour_images_of_files(image_folder, tmp_path, drawn):
  config = config_lib.read(DIGITS)
  config.data.update(
    dataset="folder", data_dir=str(image_folder), image_size=40, batch_size=8, eval_batch_size=8
  )
  config.augment.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  config.data.cache = "none"
  config.model.update(dim=8, depth=0, patch_size=8, num_classes=2)
  config.run.epochs = 1
  train(config, tmp_path)
  page = Page(plot.draw_run(tmp_path)[-1].read_text())
  assert "depthwise_kernels" not in drawn  # the model has no blocks
  assert drawn["patch_embedding"].axes[0].images[0].get_array().shape == (19, 46, 3)
  for image in page.pixels():
    assert image.shape == (40, 40, 3)
  wrong = int(page.text.split(" of 4 images are misclassified")[0].split()[-1])
  assert len(page.pixels()) == wrong


def test_many_classes_have_a_table_of_confusions():
  random = np.random.default_rng(0)
  label = np.repeat(np.arange(1000), 3).astype(np.int32)
  predicted = label.copy()
  predicted[3 * 7 : 3 * 7 + 2] = 12
  predicted[3 * 5] = 6
  probability = random.uniform(size=3000)
  names = [f"<class {i}>" for i in range(1000)]
  predictions = Predictions(label, predicted, probability, probability)
  page = Page(report.render("", [report.mistakes_of(predictions, names, [])]))
  rows = np.array(page.cells[3:]).reshape(-1, 3).tolist()
  assert rows == [["<class 7> → <class 12>", "2", "66.7"], ["<class 5> → <class 6>", "1", "33.3"]]
  few = Predictions(label[:30], predicted[:30], probability[:30], probability[:30])
  assert not Page(report.render("", [report.mistakes_of(few, names[:20], [])])).cells


@pytest.mark.parametrize(
  "name", ["onecycle", "cosine", "optax_onecycle", "slanted_triangle", "constant"]
)
def test_the_plan_is_the_schedule_of_training(name):
  config = config_lib.read(DIGITS)
  config.schedule.name = name
  config.run.epochs = 3
  history = History("a", [{"step": 44, "epoch": 2.0, "split": "train"}])
  schedule = make_schedule(**config.schedule, peak=0.01, epochs=3, steps_per_epoch=22)
  expected = [[(i + 1) / 22, float(schedule(i))] for i in range(66)]
  np.testing.assert_allclose(plot.planned(config, history), expected, rtol=1e-6, atol=1e-8)


def test_several_runs_and_a_sweep(workdir, tmp_path, drawn):
  rows = []
  for dim in (8, 16):
    shutil.copytree(workdir, tmp_path / f"sweep/model.dim={dim},model.depth=2")
    rows.append({"model.dim": dim, "model.depth": 2, "parameters": dim, "accuracy": dim / 20})
    rows[-1]["images_per_sec"] = 100 / dim
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "sweep" / "sweep.jsonl").write_text(text)
  page = Page(plot.draw_sweep(tmp_path / "sweep")[-1].read_text())
  assert [list(c.lines[0].get_xdata()) for c in drawn["accuracy"].axes[1].containers] == [[1], [2]]
  where = page.cells.index("16")
  assert page.cells[where : where + 5] == ["16", "1", "16", "80.00", "2.00"]
  names = {line.get_label() for line in drawn["curves"].axes[0].lines}
  assert {"dim 8: eval", "dim 16: train"} <= names

  plot.draw_together([workdir, tmp_path / "sweep/model.dim=8,model.depth=2"], tmp_path / "out")
  plans = drawn["learning_rate"].axes[0].lines
  np.testing.assert_array_equal(plans[0].get_data(), plans[2].get_data())
  plot.draw_together([workdir, workdir], tmp_path / "out")  # equal names
  assert drawn["curves"].axes[0].lines[0].get_label() == f"{workdir}: train"
  assert len(read_history(workdir).lines) == len(lines(workdir))

  plot.draw_sweep(tmp_path / "sweep", claimed={"dim 16": 91.26})
  claimed = [x for x in drawn["accuracy"].axes[0].lines if "claimed" in str(x.get_label())]
  assert [(list(x.get_xdata()), list(x.get_ydata())) for x in claimed] == [([16], [91.26])]
  with pytest.raises(UserError, match="'depth 16'; it has: dim 8; dim 16"):
    plot.draw_sweep(tmp_path / "sweep", claimed={"depth 16": 91.26})


def test_the_command(workdir, tmp_path, run_command):
  other = shutil.copytree(workdir, tmp_path / "other")
  printed = run_command(plot, workdir, other, f"--out={tmp_path / 'both'}", "--block=2")
  names = ["confusion_matrix", "curves", "depthwise_kernels", "learning_rate", "patch_embedding"]
  names.insert(3, "depthwise_kernels_of_block_2")
  for directory in (workdir, other):
    assert (directory / "report.html").exists()
    found = sorted(path.name for path in (directory / "plots").iterdir())
    assert found == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
  written = [pathlib.Path(line) for line in printed.splitlines()]
  assert all(path.stat().st_size > 1000 for path in written)
  assert {path.name for path in (tmp_path / "both").iterdir()} == {
    "curves.png", "curves.svg", "learning_rate.png", "learning_rate.svg"
  }  # fmt: skip


def test_mistakes_get_one_line(workdir, tmp_path, run_command):
  for arguments, message in (
    ((), "no workdir given"),
    ((workdir, tmp_path / "none"), "config.json does not exist"),
    ((workdir, "--block=3"), f"^--block=3: {workdir} has blocks 1 to 2$"),
    ((workdir, "--claimed=depth 4"), "^--claimed='depth 4' must be MODEL: PERCENT"),
  ):
    with pytest.raises(UserError, match=message) as error:
      run_command(plot, *arguments)
    assert "\n" not in str(error.value)
  assert not (workdir / "plots").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_what_the_command_lacks_it_says_how_to_install(workdir, package):
  code = f"import sys; sys.modules['{package}'] = None; from convmixer_jax import plot; plot.run()"
  command = [sys.executable, "-c", code, str(workdir)]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert run.returncode == 1
  assert run.stderr == f"error: {package} is not installed: pip install 'convmixer-jax[plot]'\n"


def test_a_sweep_without_results(tmp_path):
  (tmp_path / "sweep.jsonl").write_text("")
  with pytest.raises(UserError, match="has no finished run yet"):
    plot.draw_sweep(tmp_path)
