"""The built packages: a wheel that works on its own, and an sdist that includes the tests."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import convmixer_jax
from convmixer_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
LITTER = (
  ".git",
  ".venv*",
  "__pycache__",
  ".*_cache",
  "*.egg-info",
  "build",
  "dist",
  "runs",
  "shared",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A directory with `source`, a copy of the project, and its wheel and sdist."""
  pytest.importorskip("setuptools", minversion="77")
  root = tmp_path_factory.mktemp("built")
  shutil.copytree(ROOT, root / "source", ignore=shutil.ignore_patterns(*LITTER))
  for kind in ("wheel", "sdist"):
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(root)!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  return root


def test_every_package_is_listed():
  packages = {path.parent for path in (ROOT / "convmixer_jax").rglob("__init__.py")}
  names = {".".join(path.relative_to(ROOT).parts) for path in packages}
  assert set(SETTINGS["tool"]["setuptools"]["packages"]) == names | {"convmixer_jax.configs"}


def test_every_command_has_a_script():
  commands = {
    path.stem
    for path in (ROOT / "convmixer_jax").glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
  }
  scripts = SETTINGS["project"]["scripts"]
  modules = {name.removeprefix("convmixer-").replace("train", "main") for name in scripts}
  assert modules == commands
  assert set(scripts.values()) == {f"convmixer_jax.{name}:run" for name in commands}


def test_the_wheel_works_from_an_empty_directory(built, tmp_path):
  """Reads every config (also derived ones), the default, and the list of model names."""
  (wheel,) = built.glob(f"convmixer_jax-{convmixer_jax.__version__}-*.whl")
  zipfile.ZipFile(wheel).extractall(tmp_path / "site")
  assert {path.name.split("-")[0] for path in (tmp_path / "site").iterdir()} == {"convmixer_jax"}
  for path in (ROOT / "convmixer_jax").rglob("*"):  # native code, templates, class names, py.typed
    if path.is_file() and "__pycache__" not in path.parts:
      assert (tmp_path / "site" / path.relative_to(ROOT)).exists(), path
  code = """
import pathlib
from absl import flags
from convmixer_jax import __version__, config, errors, main
main.define_flags([])
flags.FLAGS(["test"])
assert main.read_config(None) == config.read(config.path_of("digits"))
for name in config.names():
  config.validate(config.read(config.path_of(name)))
print(__version__, *config.names())
try:
  config.path_of("none")
except errors.UserError as error:
  print(error)
"""
  environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
  (tmp_path / "empty").mkdir()
  command = [sys.executable, "-c", code]
  done = subprocess.run(
    command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  names, error = done.stdout.splitlines()
  assert names.split() == [convmixer_jax.__version__, *config_lib.names()]
  assert ", ".join(config_lib.names()) in error


def test_the_sdist_has_all_that_the_tests_read(built):
  (sdist,) = built.glob("*.tar.gz")
  with tarfile.open(sdist) as archive:
    found = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
  source = built / "source"
  for directory in (".ci", "benchmarks", "configs", "convmixer_jax", "docs", "launch", "tests"):
    files = [path for path in (source / directory).rglob("*") if path.is_file()]
    assert {path.relative_to(source).as_posix() for path in files} - found == set(), directory
  assert {"README.md", "pyproject.toml", "setup.py", ".gitignore", ".shellcheckrc"} <= found
