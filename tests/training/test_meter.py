import numpy as np
import pytest

from convmixer_jax.training.meter import Meter
from convmixer_jax.training.metrics import NonFiniteError


def values(loss, norm=1.0):
  return {"loss": loss, "count": 2.0, "learning_rate": 0.1 * loss, "grad_norm": norm}


def test_meter_averages_between_lines_and_is_one_step_late():
  lines = []
  meter = Meter(2, 5, lambda step, line: lines.append((step, line)))
  for step in (1, 2, 3):
    meter.add(step, values(float(step)))
    assert len(lines) == (step >= 3)
  meter.settle()
  assert len(lines) == 1
  meter.add(4, values(4.0))
  meter.settle()
  meter.add(5, values(5.0))
  meter.settle()
  assert [step for step, _ in lines] == [2, 4, 5]
  assert lines[0][1]["loss"] == (1 + 2) / 4
  assert lines[1][1]["loss"] == (3 + 4) / 4
  assert lines[2][1]["loss"] == 5 / 2  # the last step, although it is not a multiple of 2
  assert lines[1][1]["learning_rate"] == 0.4
  assert lines[1][1]["images_per_sec"] > 0


@pytest.mark.parametrize("bad", [values(np.nan), values(np.inf), values(1.0, norm=np.nan)])
def test_meter_stops_at_what_is_not_finite(bad):
  meter = Meter(10, 20, lambda step, line: None)
  meter.add(1, values(1.0))
  meter.add(2, bad)
  with pytest.raises(NonFiniteError, match="step 2: the loss is"):
    meter.add(3, values(1.0))
