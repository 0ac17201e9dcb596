import pathlib
import runpy

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_the_hand_written_loop_reaches_what_it_says(capsys):
  accuracy = runpy.run_path(str(EXAMPLES / "train_loop.py"))["main"]()
  assert accuracy > 0.96
  assert capsys.readouterr().out.count("epoch") == 10
