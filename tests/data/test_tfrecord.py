"""Conversion of TFRecord files, which these tests write with TensorBoardX's checksums."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from types import SimpleNamespace

from array_record.python import array_record_module
import numpy as np
import pytest
from tensorboardX.record_writer import masked_crc32c
import tensorflow_datasets as tfds

from convmixer_jax import prepare
from convmixer_jax.data import tfrecord
from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError


def write_tfrecord(path, records):
  with path.open("wb") as file:
    for record in records:
      length = struct.pack("<Q", len(record))
      file.write(length + struct.pack("<I", masked_crc32c(length)))
      file.write(record + struct.pack("<I", masked_crc32c(record)))


@pytest.fixture
def as_tfrecord(tfds_dir, tmp_path):
  """A copy of `tfds_dir` in TFDS's default format, with train in three shards; and the original."""
  root = tmp_path / "my data"
  shutil.copytree(tfds_dir, root)
  directory = root / "ants_and_bees" / "1.0.0"
  info = json.loads((directory / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  for split in info["splits"]:
    (old,) = directory.glob(f"*-{split['name']}.array_record*")
    reader = array_record_module.ArrayRecordReader(str(old))
    parts = np.array_split(np.arange(reader.num_records()), 3 if split["name"] == "train" else 1)
    split["shardLengths"] = [str(len(part)) for part in parts]
    for i, part in enumerate(parts):
      name = f"ants_and_bees-{split['name']}.tfrecord-{i:05}-of-{len(parts):05}"
      write_tfrecord(directory / name, reader.read(part.tolist()))
    reader.close()
    old.unlink()
  (directory / "dataset_info.json").write_text(json.dumps(info))
  return directory


def examples(root, split):
  source = open_source("ants_and_bees", split, str(root))
  return list(source.class_names), source.read(range(len(source)))


def test_records_are_read_in_their_order(tmp_path):
  written = [b"", b"a", b"b" * 5000]
  write_tfrecord(tmp_path / "file", written)
  assert list(tfrecord.records(tmp_path / "file")) == written


@pytest.mark.parametrize("corruption", ["cut", "cut header", "length", "content"])
def test_a_corrupt_file_is_named(tmp_path, corruption):
  path = tmp_path / "file"
  write_tfrecord(path, [b"a" * 100, b"b" * 100])
  content = bytearray(path.read_bytes())
  if corruption == "length":
    content[1] ^= 1
  elif corruption == "content":
    content[150] ^= 1
  else:
    del content[200 if corruption == "cut" else 120 :]
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"file is truncated or corrupt"):
    list(tfrecord.records(path))


def test_the_refusal_names_the_command_that_converts(as_tfrecord, tfds_dir):
  root = as_tfrecord.parents[1]
  before = {file: file.read_bytes() for file in as_tfrecord.glob("*.tfrecord*")}
  with pytest.raises(UserError, match=r"has tfrecord .*convert them in place with") as error:
    open_source("ants_and_bees", "train", str(root))
  command = str(error.value).split("`")[1].replace("python ", f"{sys.executable} ", 1)
  done = subprocess.run(command, shell=True, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout == (
    f"ants_and_bees/1.0.0 is converted from TFRecord in {as_tfrecord}: test 4, train 10 examples\n"
  )
  assert not done.stderr
  for split in ("train", "test"):
    assert examples(root, split) == examples(tfds_dir, split)
  assert {file: file.read_bytes() for file in before} == before  # unchanged
  assert tfds.builder("ants_and_bees", data_dir=root).info.file_format.value == "tfrecord"
  again = prepare.prepare("ants_and_bees", data_dir=str(root))
  assert "was already prepared" in again


def test_a_file_that_was_lost_is_converted_again_as_the_error_says(as_tfrecord, tfds_dir):
  root = as_tfrecord.parents[1]
  prepare.prepare("ants_and_bees", data_dir=str(root))
  file = as_tfrecord / "ants_and_bees-train.array_record-00001-of-00003"
  source = open_source("ants_and_bees", "train", str(root))
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"00001-of-00003 is missing, .* remove it") as error:
    source.read(range(10))
  file.unlink()
  assert f"`python -m convmixer_jax.prepare ants_and_bees '--data_dir={root}'`" in str(error.value)
  assert "is converted from TFRecord" in prepare.prepare("ants_and_bees", data_dir=str(root))
  assert examples(root, "train") == examples(tfds_dir, "train")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda file: file.unlink(), "tfrecord-00001-of-00003 is missing: restore it"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), "00001-of-00003 is truncated"),
    (lambda file: file.write_bytes(b""), "has 0 records, but dataset_info.json says 3"),
  ],
)
def test_what_cannot_be_converted_is_named_and_leaves_no_trace(as_tfrecord, spoil, message):
  spoil(as_tfrecord / "ants_and_bees-train.tfrecord-00001-of-00003")
  with pytest.raises(UserError, match=message):
    prepare.prepare("ants_and_bees", data_dir=str(as_tfrecord.parents[1]))
  assert "alternativeFileFormats" not in (as_tfrecord / "dataset_info.json").read_text()
  assert not list(as_tfrecord.glob("*.partial*"))
  assert not list(as_tfrecord.glob("*array_record-00001-of-00003"))


def test_too_small_a_disk_is_told_before_anything_is_written(as_tfrecord, monkeypatch):
  monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
  with pytest.raises(UserError, match=r"needs 0.0 GiB .* TFRecord files, but 0.0 GiB are free"):
    prepare.prepare("ants_and_bees", data_dir=str(as_tfrecord.parents[1]))
  assert not list(as_tfrecord.glob("*array_record*"))


def test_a_disk_that_cannot_be_written_to(as_tfrecord, monkeypatch):
  def refuse(path, options):
    raise RuntimeError(f"open() failed: Permission denied; opening {path}")

  monkeypatch.setattr(array_record_module, "ArrayRecordWriter", refuse)
  with pytest.raises(
    UserError, match=r"1.0.0 cannot be written: open\(\) failed: Permission denied"
  ):
    prepare.prepare("ants_and_bees", data_dir=str(as_tfrecord.parents[1]))


def test_a_killed_conversion_goes_on_when_it_is_repeated(as_tfrecord, tfds_dir):
  root = as_tfrecord.parents[1]
  script = f"""
import os, signal
from convmixer_jax import prepare
from convmixer_jax.data import tfrecord

def killed(path, records=tfrecord.records):
  for number, record in enumerate(records(path)):
    yield record
    if "train" in path.name and "00000" not in path.name:
      os.kill(os.getpid(), signal.SIGKILL)

tfrecord.records, os.cpu_count = killed, lambda: 1
prepare.prepare("ants_and_bees", data_dir={str(root)!r})
"""
  result = subprocess.run([sys.executable, "-c", script], capture_output=True)
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert list(as_tfrecord.glob("*.partial*"))
  with pytest.raises(UserError, match="convert them in place"):
    open_source("ants_and_bees", "train", str(root))
  whole = {f: os.stat(f).st_mtime_ns for f in as_tfrecord.glob("*array_record-*-of-?????")}
  assert whole
  prepare.prepare("ants_and_bees", data_dir=str(root))
  assert {f: os.stat(f).st_mtime_ns for f in whole} == whole
  assert examples(root, "train") == examples(tfds_dir, "train")
  assert not list(as_tfrecord.glob("*.partial*"))
