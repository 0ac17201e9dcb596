import json

import jax
import pytest

import convmixer_jax
from convmixer_jax.results import starts


def test_each_start_has_a_line(tmp_path):
  with starts.recorded(tmp_path, 0):
    (line,) = starts.read(tmp_path)
    assert (line["step"], line["ended"]) == (0, None)  # all that a killed run leaves
  with pytest.raises(RuntimeError), starts.recorded(tmp_path, 30):
    raise RuntimeError
  first, second = starts.read(tmp_path)
  assert (first["step"], second["step"]) == (0, 30)
  assert first["began"] <= first["ended"] <= second["began"] <= second["ended"]
  assert first["devices"] == "8 x cpu"
  assert first["versions"]["jax"] == jax.__version__
  assert first["versions"]["convmixer_jax"] == convmixer_jax.__version__


def test_a_line_that_was_cut_is_dropped(tmp_path):
  (tmp_path / "starts.jsonl").write_text('{"began": "2026-01-01T0')
  with starts.recorded(tmp_path, 5):
    assert [line["step"] for line in starts.read(tmp_path)] == [5]


def test_duration_counts_what_was_not_killed(tmp_path):
  lines = [
    {"began": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T11:00:05+00:00"},
    {"began": "2026-01-01T11:30:00+00:00", "ended": None},
    {"began": "2026-01-01T23:59:50+00:00", "ended": "2026-01-02T00:00:05+00:00"},
  ]
  (tmp_path / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert starts.seconds(starts.read(tmp_path)) == 3620


def test_summary():
  assert starts.summary([]) == {}
  line = {
    "began": "2026-01-01T10:00:00+00:00",
    "ended": "2026-01-01T12:00:05+00:00",
    "devices": "8 x TPU v5e",
    "versions": {"jax": "1.2", "python": "3.13"},
    "commit": None,
  }
  assert starts.summary([line]) == {
    "started": "2026-01-01 10:00:00 UTC",
    "duration": "2:00:05",
    "devices": "8 x TPU v5e",
    "versions": "jax 1.2, python 3.13",
  }
  found = starts.summary([{**line, "ended": None}, {**line, "commit": "abc"}])
  assert found["duration"] == "2:00:05, in 2 starts, without 1 that was killed or still runs"
  assert found["commit"] == "abc"
