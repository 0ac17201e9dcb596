import importlib.util
import pathlib

import pytest

from convmixer_jax.errors import UserError
from convmixer_jax.storage import check_new, is_remote, path_of


def test_paths_on_disks():
  assert path_of("runs/a") == pathlib.Path("runs/a")
  assert path_of(pathlib.Path("runs/a")) == pathlib.Path("runs/a")
  assert path_of("~/a") == pathlib.Path.home() / "a"
  assert not is_remote(path_of("runs/a"))


def test_other_object_stores_are_refused():
  with pytest.raises(UserError, match=r"s3://bucket/run: .*gs:// alone"):
    path_of("s3://bucket/run")


def test_google_cloud_storage():
  if importlib.util.find_spec("gcsfs") is None:
    with pytest.raises(UserError, match=r"pip install 'convmixer-jax\[gcs\]'"):
      path_of("gs://bucket/run")
  else:
    path = path_of("gs://bucket/run") / "config.json"
    assert str(path) == "gs://bucket/run/config.json"
    assert is_remote(path)


def test_a_new_path_is_checked_and_not_made(tmp_path):
  check_new(tmp_path / "a" / "b.safetensors")
  assert not list(tmp_path.iterdir())
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file exists already"):
    check_new(tmp_path / "file")
  with pytest.raises(UserError, match=r"b cannot be written: .*file is no directory"):
    check_new(tmp_path / "file" / "a" / "b")
