"""Shared fixtures; the tests run on eight CPU devices and with strict rank promotion."""

import base64
import gc
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

# Set before JAX is imported, and inherited by subprocesses of the tests. Compilation takes most of
# the tests' time, so the cache is kept between test runs, and XLA only does what is needed and
# compiles quickly, unless XLA_FLAGS is set, as in .ci/run.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
  " --xla_cpu_use_onednn=false --xla_cpu_use_xnnpack=false"
  # Later versions have only the emitters that compile slowly.
  + " --xla_cpu_use_fusion_emitters=false"
  * (importlib.metadata.version("jaxlib") < "0.11"),
)
os.environ |= {
  "JAX_PLATFORMS": "cpu",
  "JAX_NUM_CPU_DEVICES": "8",
  "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}

from absl import flags
from array_record.python import array_record_module
import jax
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from convmixer_jax import cli, prepare
from convmixer_jax.data import builders
from tests.archives import golden, make

gc.set_threshold(100_000, 50, 50)  # tracing makes many objects, few of them garbage


def spoil_record(file, number):
  """Corrupts a byte in a record of an ArrayRecord file."""
  reader = array_record_module.ArrayRecordReader(str(file))
  record = reader.read([number])[0]
  reader.close()
  content = bytearray(file.read_bytes())
  (at,) = [found.start() for found in re.finditer(re.escape(record[-200:]), bytes(content))]
  content[at + 100] ^= 255
  file.write_bytes(bytes(content))


@pytest.fixture(autouse=True)
def strict():
  """Broadcasting arrays of different ranks is an error."""
  with jax.numpy_rank_promotion("raise"):
    yield


@pytest.fixture
def run_command(monkeypatch, capsys):
  """`run_command(module, *arguments)` runs a command in this process, and returns its stdout.

  It parses the flags and calls `main`; errors of both propagate.
  """

  def run(module, *arguments):
    before, defined = set(flags.FLAGS), set()

    def start(main):
      defined.update(set(flags.FLAGS) - before)  # without those of libraries that `main` imports
      main(flags.FLAGS(sys.argv))

    capsys.readouterr()
    with monkeypatch.context() as patch:
      patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
      patch.setattr(cli, "run", start)
      try:
        module.run()
      finally:
        for name in defined:
          delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return capsys.readouterr().out

  return run


@pytest.fixture(scope="session")
def configs():
  """The directory of the config files."""
  return pathlib.Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="session")
def venv(tmp_path_factory):
  """A directory for `VENV` that launch/venv.sh accepts as installed; it runs the tests' Python."""
  root = tmp_path_factory.mktemp("venv")
  (root / "bin").mkdir()
  (root / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
  (root / "bin" / "python").chmod(0o755)
  stamp = subprocess.run(
    "cat pyproject.toml launch/constraints.txt | cksum",
    shell=True,
    cwd=pathlib.Path(__file__).parents[1],
    stdout=subprocess.PIPE,
    check=True,
  )
  (root / "installed.").write_bytes(stamp.stdout)
  return root


@pytest.fixture(scope="session")
def photos():
  """uint8 [4, 80, 96, 3]: two crops per photograph of scikit-learn, one of the four dull."""
  china, flower = sklearn.datasets.load_sample_images().images
  details = china[100:180, 200:296], china[250:330, 30:126], flower[150:230, 250:346]
  return np.stack([*details, flower[60:140, 330:426] // 3 + 40])


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
  """`train/{ant,bee}` with five JPEGs of 40x40 pixels each, `test/{ant,bee}` with two each."""
  root = tmp_path_factory.mktemp("photos")
  random = np.random.RandomState(0)
  for split, count in (("train", 5), ("test", 2)):
    for name in ("ant", "bee"):
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = np.kron(random.randint(0, 256, (5, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(root / split / name / f"{i}.jpg", quality=95)
  return root


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory, image_folder):
  """A data directory with `image_folder` prepared as the TFDS dataset "ants_and_bees"."""
  root = tmp_path_factory.mktemp("tfds")
  prepare.prepare("folder", data_dir=str(root), manual_dir=str(image_folder), name="ants_and_bees")
  return root


@pytest.fixture
def archives(tmp_path, monkeypatch):
  """A directory with the archives that the golden file was generated from."""
  directory = tmp_path / "source"
  directory.mkdir()
  images = {key: base64.b64decode(before) for key, (before, _) in golden["repair"].items()}
  make["make_imagenet"](directory, **images)
  cifar = make["make_cifar"](directory)
  for builder in (builders.Cifar10, builders.Cifar100):
    # A copy, because TFDS owns the dictionary and would keep the change.
    monkeypatch.setattr(builder, "url_infos", dict(builder.url_infos))
    make["register"](builder, cifar)
  return directory
