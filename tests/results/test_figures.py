"""Figures, checked by reading the data back from their axes."""

import numpy as np
import pytest

from convmixer_jax.results import figures
from convmixer_jax.results.history import History, Point, Sweep


def line(step, split, **values):
  return {"step": step, "epoch": step / 10, "split": split, **values}


RUN = History(
  "a",
  [
    line(5, "train", loss=4.0, accuracy=0.25, learning_rate=0.01),
    line(10, "train", loss=1.0, accuracy=0.5, learning_rate=0.02),
    line(10, "eval", loss=1.5, accuracy=0.375),
    line(10, "eval_ema", loss=1.25, accuracy=0.4375),
    line(10, "test", loss=1.5, accuracy=0.3125, checkpoint=10),
    line(10, "train_eval", loss=0.75, accuracy=0.75),
  ],
)


def drawn(axes):
  return {x.get_label(): (list(x.get_xdata()), list(x.get_ydata())) for x in axes.lines}


def test_curves_are_the_metrics():
  loss, accuracy = figures.curves([RUN]).axes
  assert drawn(loss) == {
    "a: train": ([0.5, 1.0], [4.0, 1.0]),
    "a: eval": ([1.0], [1.5]),
    "a: eval_ema": ([1.0], [1.25]),
    "a: test": ([1.0], [1.5]),
    "a: train_eval": ([1.0], [0.75]),
  }
  assert drawn(accuracy)["a: train"] == ([0.5, 1.0], [25, 50])
  assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
  assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in (loss, accuracy))


@pytest.mark.parametrize("count", [2, 12])
def test_runs_laid_over_each_other_are_told_apart(count):
  runs = [History(f"run {i}", RUN.lines[i % 2 :]) for i in range(count)]
  figure = figures.curves(runs)
  lines = figure.axes[0].lines
  evals = [x for x in lines if x.get_label().endswith(": eval")]
  assert len({(x.get_color(), x.get_marker()) for x in evals}) == count
  assert len({x.get_linestyle() for x in lines if x.get_label().startswith("run 0")}) == 5
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts[:2] == ["run 0 (last 37.50 %)", "run 1 (last 37.50 %)"]
  assert texts[count] == "training"


def test_a_loss_of_zero_and_no_lines_at_all():
  zero = History("zero", [line(10, "train", loss=0.0, accuracy=1.0)])
  loss = figures.curves([zero]).axes[0]
  assert loss.get_yscale() == "linear"
  assert loss.lines[0].get_marker() == "."  # a single point needs a marker
  axes = figures.curves([History("new", [])]).axes[0]
  assert axes.texts[0].get_text() == "nothing recorded yet"


def test_schedule_is_the_plan_and_what_was_recorded():
  plan = np.array([[0.1, 0.001], [1.0, 0.02], [2.0, 0.0]])
  (axes,) = figures.schedule([RUN], [plan]).axes
  found = drawn(axes)
  assert found["a: planned"] == ([0.1, 1.0, 2.0], [0.001, 0.02, 0.0])
  assert found["a: recorded"] == ([0.5, 1.0], [0.01, 0.02])
  empty = figures.schedule([RUN, History("b", [])], [plan, np.zeros((0, 2))])
  assert drawn(empty.axes[0])["b: planned"] == ([], [])


def tile(image, index, columns, size):
  """Extracts one tile of a grid with tiles of `size` pixels and gaps of one pixel."""
  row, column = divmod(index, columns)
  top, left = row * (size + 1) + 1, column * (size + 1) + 1
  return image[top : top + size, left : left + size]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_patch_filters_are_the_weights(channels):
  kernel = np.random.default_rng(0).normal(size=(7, 7, channels, 10))
  figure = figures.patch_filters(kernel, "run")
  image = figure.axes[0].images[0]
  found = tile(image.get_array(), 6, 5, 7)
  if channels == 3:
    limit = np.quantile(np.abs(kernel), 0.995)
    expected = 0.5 + 0.5 * np.clip(kernel[..., 6] / limit, -1, 1)
    np.testing.assert_allclose(found, expected)
  else:
    np.testing.assert_allclose(found, kernel[..., 6].mean(-1))
    assert image.norm.vmin == -image.norm.vmax
  assert figure.get_suptitle() == "run"
  assert figure.get_supxlabel().startswith("All 10 filters of 7x7 pixels. ")


def test_small_patches_and_zero_weights():
  kernel = np.zeros((1, 1, 1, 300))
  figure = figures.patch_filters(kernel, "run")
  assert figure.get_supxlabel().startswith("The first 256 of 300 filters")
  image = figure.axes[0].images[0].get_array()
  assert image.shape == (10 * 7 + 1, 26 * 7 + 1)  # tiles are enlarged to six pixels
  assert (tile(image, 255, 26, 6) == 0).all()


def test_depthwise_kernels_of_each_block():
  kernels = np.random.default_rng(0).normal(size=(4, 6, 6, 5))
  axes = figures.depthwise_kernels(list(kernels), "run").axes
  assert len(axes) == 4
  for panel, kernel in zip(axes, kernels, strict=True):
    found = tile(panel.images[0].get_array(), 4, 3, 6)
    np.testing.assert_allclose(found, kernel[..., 4])
  assert axes[2].get_title().startswith("block 3 of 4")


def test_every_kernel_of_one_block():
  """The figure of the Keras example: 256 kernels of 5x5."""
  kernel = np.random.default_rng(0).normal(size=(5, 5, 256))
  figure = figures.block_kernels(kernel, "run, block 4 of 8")
  grid = figure.axes[0].images[0].get_array()
  for number in (0, 255):
    found = tile(grid, number, 26, 10)[::2, ::2]  # pixels are doubled
    np.testing.assert_array_equal(found, kernel[..., number])
  assert figure.get_suptitle() == "run, block 4 of 8"
  assert figure.get_supxlabel().startswith("All 256 kernels of 5x5. ")


def test_a_deep_model_shows_some_blocks():
  kernels = [np.full((3, 3, 80), float(block + 1)) for block in range(32)]
  axes = [panel for panel in figures.depthwise_kernels(kernels, "run").axes if panel.images]
  titles = [panel.get_title() for panel in axes]
  assert len(axes) == 8
  assert titles[0].startswith("block 1 of 32")
  assert titles[-1].startswith("block 32 of 32")
  assert axes[-1].images[0].get_array().max() == 32


def test_confusion_shows_counts_and_shares():
  counts = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])  # the last class has no examples
  figure = figures.confusion(counts, ["cat", "elephant", "dog"], "title")
  axes = figure.axes[0]
  share = np.array([[75, 25, 0], [0, 100, 0], [0, 0, 0]])
  np.testing.assert_array_equal(axes.images[0].get_array(), share)
  texts = {text.get_position(): text.get_text() for text in axes.texts}
  assert texts == {(0, 0): "3", (1, 0): "1", (1, 1): "4"}
  assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "elephant", "dog"]


def test_sweep_against_parameters_and_time():
  points = [
    Point({"model.dim": 16, "model.depth": 4}, 3000, 0.75, 0.125, 1.5, 2),
    Point({"model.dim": 16, "model.depth": 2}, 1000, 0.5, 0.0, 1.0, 2),
    Point({"model.dim": 32, "model.depth": 2}, 50000, 0.875, 0.0, 12.0, 2),
  ]
  size, time = figures.sweep(Sweep(points, "test_accuracy", {}), "Sweep s").axes
  lines = [container.lines[0] for container in size.containers]
  assert [container.get_label() for container in size.containers] == ["dim 16", "dim 32"]
  assert [list(x.get_xdata()) for x in lines] == [[1000, 3000], [50000]]
  assert [list(x.get_ydata()) for x in lines] == [[50, 75], [87.5]]
  assert [list(c.lines[0].get_xdata()) for c in time.containers] == [[1, 1.5], [12]]
  assert [text.get_text() for text in size.texts] == ["2", "4", "2"]
  assert size.get_xscale() == time.get_xscale() == "log"
  assert "dim 16, depth 2" in time.get_xlabel()
  assert "test" in size.get_ylabel()
  claims = {"dim 32, depth 2": 91.26, "dim 16, depth 2": 60.0}
  for axes, x in zip(
    figures.sweep(Sweep(points, "accuracy", {}), "s", claims).axes,
    ([1000, 50000], [1, 12]),
    strict=True,
  ):
    assert drawn(axes)["claimed by the source"] == (x, [60, 91.26])
  texts = [text.get_text() for text in axes.figure.axes[0].get_legend().get_texts()]
  assert texts == ["claimed by the source", "dim 16", "dim 32"]


def test_files(tmp_path):
  png, svg = figures.save(figures.curves([RUN]), tmp_path / "plots", "curves")
  assert png.read_bytes().startswith(b"\x89PNG")
  assert b"<svg" in svg.read_bytes()
  once, again = (figures.to_svg(figures.curves([RUN])) for _ in range(2))
  assert once == again  # no date and no random ids


def test_a_page_with_headings_needs_no_titles():
  figure = figures.curves([RUN])
  assert b"Training and evaluation of a" in figures.to_svg(figure)
  assert b"Training and evaluation" not in figures.to_svg(figure, with_title=False)


def test_all_figures_have_one_width():
  kernel = np.ones((3, 3, 3, 8))
  sizes = [
    figures.curves([RUN]),
    figures.schedule([RUN], [np.zeros((0, 2))]),
    figures.patch_filters(kernel, "run"),
    figures.depthwise_kernels([kernel[:, :, 0]] * 3, "run"),
    figures.block_kernels(kernel[:, :, 0], "run"),
    figures.confusion(np.eye(3, dtype=int), list("abc"), "run"),
  ]
  assert {figure.get_figwidth() for figure in sizes} == {figures.WIDTH}
