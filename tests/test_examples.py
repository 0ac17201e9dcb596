import os
import pathlib
import runpy

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "convmixer.ipynb"
pytestmark = pytest.mark.slow


def test_the_hand_written_loop_reaches_what_it_says(capsys):
  accuracy = runpy.run_path(str(EXAMPLES / "train_loop.py"))["main"]()
  assert accuracy > 0.96
  assert capsys.readouterr().out.count("epoch") == 10


def printed(notebook):
  """What each code cell prints."""
  outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
  return ["".join(x.text for x in of_cell if x.output_type == "stream") for of_cell in outputs]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_and_shows_what_it_stores(monkeypatch):
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  stored, run = (nbformat.read(NOTEBOOK, 4) for _ in range(2))
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
  monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent) + os.pathsep)
  nbclient.NotebookClient(run, timeout=300).execute()  # raises the error of a cell
  expected, found = printed(stored), printed(run)
  assert found[1] == expected[1]  # shapes and the number of parameters
  (accuracy,) = (text for text in found if "are correct" in text)
  assert float(accuracy.split("%")[0]) > 97
  assert "the same classes: True" in found[-1]
  assert (
    sum("image/svg+xml" in str(cell.outputs) for cell in stored.cells if "outputs" in cell) == 3
  )
  assert NOTEBOOK.stat().st_size < 400_000
