import re
import time

import pytest

from convmixer_jax.results.progress import Progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test advances."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


def test_a_line_that_goes_to_a_file_tells_the_time_and_how_long_it_takes_yet(capsys, clock):
  """The first step takes 60 seconds to compile, the next two 15; seven are left."""
  progress = Progress(first_step=0, total_steps=10, batch_size=4)
  clock[0] += 60
  progress.print(1, 0.25, "train", {"loss": 1.25})
  for _ in range(3):
    progress.advance()
  clock[0] += 15
  progress.print(3, 0.75, "train", {"loss": 1.25})
  progress.print(10, 2.5, "train", {"loss": 1.25})
  progress.close()
  compiled, first, last = capsys.readouterr().out.splitlines()
  date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
  assert re.fullmatch(date + "step 1/10  epoch 0.25  train  loss 1.25", compiled)
  assert re.fullmatch(date + "step 3/10  epoch 0.75  train  loss 1.25  eta 00:52", first)
  assert re.fullmatch(date + "step 10/10  epoch 2.50  train  loss 1.25", last)


def test_numbers_are_short_and_have_no_exponent_that_they_do_not_need(capsys):
  values = {
    "a": 18812.34,
    "b": 0.123456,
    "c": 1e-5,
    "d": 999.96,
    "e": 1e30,
    "f": 70000,
    "g": 1437.6,
  }
  progress = Progress(first_step=0, total_steps=10, batch_size=4)
  progress.print(2, 0.5, "train", values)
  progress.close()
  expected = "a 18812  b 0.1235  c 1e-05  d 1000  e 1e+30  f 70000  g 1438"
  assert expected in capsys.readouterr().out
