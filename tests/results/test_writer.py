import json
import os
import sys

import pytest

from convmixer_jax.results.writer import Writer


def open_writer(workdir, first_step):
  return Writer(workdir, first_step=first_step, total_steps=10, batch_size=4)


def read(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_events_and_plain_text(tmp_path, capsys):
  with open_writer(tmp_path, 0) as writer:
    writer.write(2, 0.5, "train", {"loss": 1.25, "accuracy": 0.5})
    assert read(tmp_path) == [
      {"step": 2, "epoch": 0.5, "split": "train", "loss": 1.25, "accuracy": 0.5}
    ]  # before the writer is closed
  assert "step 2/10  epoch 0.50  train  loss 1.25  accuracy 0.5" in capsys.readouterr().out
  assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_resumed_run_takes_its_steps_once(tmp_path):
  with open_writer(tmp_path, 0) as writer:
    for step in (2, 4, 6):
      writer.write(step, step / 4, "train", {"loss": step})
    writer.write(4, 1, "test", {"loss": 0.5})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "ep')  # a run killed while writing a line
  with open_writer(tmp_path, 4) as writer:
    assert writer.has("test", 4)
    assert not writer.has("test", 2)
    writer.write(6, 1.5, "train", {"loss": 60})
  assert [(line["step"], line["split"], line["loss"]) for line in read(tmp_path)] == [
    (2, "train", 2), (4, "train", 4), (4, "test", 0.5), (6, "train", 60)]  # fmt: skip


def test_events_reach_the_file_with_each_line(tmp_path):
  with open_writer(tmp_path, 0) as writer:
    (file,) = tmp_path.glob("events.out.tfevents.*")
    before = file.stat().st_size
    writer.write(2, 0.5, "train", {"loss": 1.25})
    assert b"train/loss" in file.read_bytes()[before:]


@pytest.mark.parametrize("gone", ["closed pipe", "closed stream", "none"])
def test_a_console_that_is_gone_takes_nothing_with_it(tmp_path, monkeypatch, gone):
  read_end, write_end = os.pipe()
  stream = os.fdopen(write_end, "w")
  os.close(read_end)
  if gone == "closed stream":
    stream.close()
  monkeypatch.setattr(sys, "stdout", None if gone == "none" else stream)
  with open_writer(tmp_path, 0) as writer:
    writer.write(2, 0.5, "train", {"loss": 1.25})
    writer.say("the end")
    writer.write(4, 1, "train", {"loss": 1.0})
  assert [line["step"] for line in read(tmp_path)] == [2, 4]
  stream.close()


def test_a_run_that_has_lost_its_workdir_does_not_write_to_it(tmp_path):
  def fail():
    raise RuntimeError("lost")

  writer = Writer(tmp_path, first_step=0, total_steps=10, batch_size=4, check=fail)
  with pytest.raises(RuntimeError, match="lost"), writer:
    writer.flush()


def test_other_loggers_get_each_line(tmp_path):
  got = []
  with Writer(
    tmp_path, first_step=0, total_steps=4, batch_size=4, on_metrics=lambda *line: got.append(line)
  ) as writer:
    writer.write(2, 0.5, "train", {"loss": 1.25})
    writer.write(4, 1.0, "eval", {"loss": 1.5, "accuracy": 0.5})
  assert got == [(2, "train", {"loss": 1.25}), (4, "eval", {"loss": 1.5, "accuracy": 0.5})]
