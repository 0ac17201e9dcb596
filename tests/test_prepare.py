"""`prepare`: downloads, the command line, and its errors."""

import functools
import gzip
import http.server
import importlib.util
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import tensorflow_datasets as tfds

from convmixer_jax import prepare
from convmixer_jax.data import builders
from convmixer_jax.errors import UserError
from tests.archives import make, write_image


def run(*arguments):
  """Runs `python -m convmixer_jax.prepare` in a subprocess."""
  command = [sys.executable, "-m", "convmixer_jax.prepare", *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True)


def test_downloads_and_refuses_a_corrupt_download(archives, tmp_path, monkeypatch):
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archives)
  with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://localhost:{server.server_port}/cifar-10-binary.tar.gz"
    layout = builders.Cifar10(data_dir=tmp_path)._cifar_info._replace(url=url)
    monkeypatch.setattr(builders.Cifar10, "_cifar_info", layout)
    archive = archives / "cifar-10-binary.tar.gz"
    make["register"](builders.Cifar10, {url: archive})
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"localhost.*corrupt.*--manual_dir.*checksum"):
      prepare.prepare("cifar10", data_dir=str(tmp_path / "data"))
    archive.write_bytes(whole)
    done = prepare.prepare("cifar10", data_dir=str(tmp_path / "data"))
    server.shutdown()
  assert "is prepared" in done and "train 20, test 5 examples" in done
  assert len(tfds.builder("cifar10", data_dir=tmp_path / "data").as_data_source("train")) == 20


@pytest.fixture(params=["closed", "silent"])
def dead_port(request, monkeypatch):
  """A local port that refuses connections, or accepts them and never responds."""
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    if request.param == "silent":
      server.listen()
      monkeypatch.setattr(prepare, "_TIMEOUT", (5, 0.5))
    yield server.getsockname()[1]


def test_the_longest_wait_for_a_network_is_short():
  connect, read = prepare._TIMEOUT
  assert 2 * connect + read <= 20


@pytest.mark.filterwarnings("ignore:unclosed")  # requests leaves it to the garbage collector
def test_no_network_for_cifar10(dead_port, tmp_path, monkeypatch, caplog):
  url = f"http://127.0.0.1:{dead_port}/cifar-10-binary.tar.gz"
  layout = builders.Cifar10(data_dir=tmp_path)._cifar_info
  monkeypatch.setattr(builders.Cifar10, "url_infos", {url: builders.Cifar10.url_infos[layout.url]})
  monkeypatch.setattr(builders.Cifar10, "_cifar_info", layout._replace(url=url))
  start = time.monotonic()
  with pytest.raises(UserError, match=rf"^{url} cannot be downloaded.* --manual_dir=DIR") as error:
    prepare.prepare("cifar10", data_dir=str(tmp_path))
  assert time.monotonic() - start < 5
  assert re.search("Connection refused|Read timed out", str(error.value))
  assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:unclosed")
def test_no_network_for_another_dataset_of_tfds(dead_port, tmp_path, monkeypatch):
  url = f"http://127.0.0.1:{dead_port}/"
  builder = tfds.builder_cls("mnist")
  monkeypatch.setattr(builder, "URL", url)
  monkeypatch.setattr(
    builder, "url_infos", {url + key.rpartition("/")[2]: x for key, x in builder.url_infos.items()}
  )
  start = time.monotonic()
  with pytest.raises(UserError, match=rf"mnist could not be prepared: {url}\S+ cannot be reached"):
    prepare.prepare("mnist", data_dir=str(tmp_path))
  assert time.monotonic() - start < 5


def test_folder_command(tmp_path, run_command):
  photos, data = tmp_path / "photos", tmp_path / "data"
  for i, path in enumerate(
    ("train/b/1.jpg", "train/b/deep/2.PNG", "train/a/3.jpeg", "val/a/4.webp")
  ):
    write_image(photos / path, value=60 * i)
  write_image(photos / "val/b/5.bmp")
  (photos / "val/b/notes.txt").write_text("no image")
  write_image(photos / "train/.cache/6.jpg")
  result = run("folder", "--name=my_set", f"--manual_dir={photos}", f"--data_dir={data}")
  assert result.returncode == 0, result.stderr
  assert (
    result.stdout == f"my_set/1.0.0 is prepared in {data}/my_set/1.0.0: train 3, val 2 examples\n"
  )

  builder = tfds.builder("my_set", data_dir=data)
  assert builder.info.features["label"].names == ["a", "b"]
  decoders = {"image": tfds.decode.SkipDecoding()}
  for split, labels in (("train", [0, 1, 1]), ("val", [0, 1])):
    records = builder.as_data_source(split, decoders=decoders)
    assert sorted(record["label"] for record in records) == labels
    for record in records:
      name = record["file_name"].decode()
      assert record["image"] == (photos / split / name).read_bytes()
      assert name.startswith("ab"[record["label"]] + "/")

  # Run again without the images: reports the prepared dataset, and changes nothing.
  before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
  assert "was already prepared" in run_command(
    prepare, "folder", "--name=my_set", f"--data_dir={data}"
  )
  assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_a_mistake_ends_the_command_with_one_line_and_status_1(tmp_path):
  result = run("cifar11", f"--data_dir={tmp_path}/data")
  assert result.returncode == 1 and not result.stdout
  assert re.match('"cifar11" is not a dataset: [^\n]*\n$', result.stderr)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("cifar11",), '"cifar11" is not a dataset: use cifar10, .*, folder, or'),
    (("folder",), "--name=None: a folder needs a name"),
    (("folder", "--name=My-Set"), "--name=My-Set: a folder needs a name of lower-case"),
    (("folder", "--name=digits"), "--name=digits is already"),
    (("folder", "--name=cifar10"), "--name=cifar10 is already"),
    (
      ("imagenet2012",),
      "data/downloads/manual/ILSVRC2012_img_train.tar .*image-net.org.*python -m",
    ),
    ((), "expected one dataset, got 0; see --help"),
  ],
)
def test_mistakes_of_the_command_line(arguments, message, tmp_path, run_command):
  with pytest.raises(SystemExit, match=message) as end:
    run_command(prepare, *arguments, f"--data_dir={tmp_path}/data")
  assert "\n" not in end.value.code


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="has TensorFlow")
def test_dataset_of_tfds_that_needs_tensorflow(archives, tmp_path, monkeypatch):
  mnist = tfds.builder_cls("mnist")
  files = {url: archives / info.filename for url, info in mnist.url_infos.items()}
  for file in files.values():
    file.write_bytes(gzip.compress(b"x"))
  monkeypatch.setattr(mnist, "url_infos", dict(mnist.url_infos))
  make["register"](mnist, files)
  command = (
    f"tfds build mnist --file_format=array_record --data_dir={tmp_path} --manual_dir={archives}`"
  )
  with pytest.raises(UserError, match=r"needs TensorFlow to prepare mnist") as error:
    prepare.prepare("mnist", data_dir=str(tmp_path), manual_dir=str(archives))
  assert str(error.value).endswith(command)


def test_other_file_format_in_the_way(archives, tmp_path):
  prepare.prepare("cifar10", data_dir=str(tmp_path), manual_dir=str(archives))
  info = tmp_path / "cifar10/3.0.2/dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"riegeli"'))
  with pytest.raises(UserError, match=r"3.0.2 exists, but not as ArrayRecord"):
    prepare.prepare("cifar10", data_dir=str(tmp_path), manual_dir=str(archives))


def test_killed_preparation_does_not_look_ready(tmp_path):
  photos = tmp_path / "photos"
  for i in range(3):
    write_image(photos / f"train/a/{i}.jpg")
  script = f"""
import os, signal
from convmixer_jax import prepare
from convmixer_jax.data import builders

def killed(self, split, classes):
  yield "a/0.jpg", {{"image": split / "a/0.jpg", "label": "a", "file_name": "a/0.jpg"}}
  os.kill(os.getpid(), signal.SIGKILL)

builders.ImageFolder._generate_examples = killed
prepare.prepare("folder", name="mine", data_dir="{tmp_path}", manual_dir="{photos}")
"""
  result = subprocess.run([sys.executable, "-c", script], capture_output=True)
  assert result.returncode == -signal.SIGKILL
  assert list((tmp_path / "mine").glob("incomplete*"))
  with pytest.raises(tfds.core.DatasetNotFoundError):
    tfds.builder("mine", data_dir=tmp_path)
  done = prepare.prepare("folder", name="mine", data_dir=str(tmp_path), manual_dir=str(photos))
  assert "is prepared" in done and "train 3 examples" in done
