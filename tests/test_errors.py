"""Messages about packages that are not installed, and commands that do without them."""

import os
import pathlib
import subprocess
import sys

import pytest

from convmixer_jax.errors import needs
from tests.pretrained import goldens

# What the extras bring, under the names that are imported.
EXTRAS = {
  "train": (
    "array_record",
    "google_crc32c",
    "grain",
    "requests",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
  ),
  "export": ("flatbuffers",),
  "plot": ("jinja2", "matplotlib"),
  "hub": ("huggingface_hub",),
  "gcs": ("gcsfs",),
  "aot-tpu": ("libtpu",),
  "cuda": ("jax_cuda12_plugin",),
  "torch": ("torch",),
}


def run_without(packages, command, *arguments, cwd=None):
  """Runs a command in a process that cannot import these packages."""
  code = (
    "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(','))); "
    "sys.argv[:2] = []; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
  )
  return subprocess.run(
    [sys.executable, "-c", code, ",".join(packages), f"convmixer_jax.{command}", *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
  )


@pytest.mark.parametrize(
  ("extra", "command", "arguments"),
  [
    ("train", "main", ["--config=digits"]),
    ("train", "prepare", ["cifar10"]),
    ("gcs", "main", ["--config=digits", "--workdir=gs://bucket/run"]),
    ("hub", "predict", ["--init_from=convmixer_768_32", __file__]),
    ("aot-tpu", "compile", ["--config=digits", "--target=v5e:1x1"]),
    ("cuda", "compile", ["--config=digits", "--target=h100"]),
  ],
)
def test_a_command_without_its_extra_says_what_to_install(tmp_path, extra, command, arguments):
  done = run_without(EXTRAS[extra], command, *arguments, cwd=tmp_path)
  (line,) = done.stderr.splitlines()
  assert done.returncode == 1
  assert line.startswith("error: ")
  assert f"pip install 'convmixer-jax[{extra}]'" in line
  assert any(f"{package} is not installed" in line for package in EXTRAS[extra])


@pytest.mark.slow
def test_prediction_needs_no_extra(image_folder):
  photo = next(image_folder.rglob("*.jpg"))
  absent = [package for packages in EXTRAS.values() for package in packages]
  weights = goldens.golden_file("relu_odd")
  done = run_without(
    absent, "predict", f"--init_from={weights}", "--activation=relu", "--image_size=32", str(photo)
  )
  assert done.returncode == 0, done.stderr
  assert str(photo) in done.stdout


def test_a_module_of_ours_that_does_not_exist_is_a_bug():
  with pytest.raises(ModuleNotFoundError, match=r"convmixer_jax\.nothing"), needs("train"):
    import convmixer_jax.nothing  # noqa: F401
