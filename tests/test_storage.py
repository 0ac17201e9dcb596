import errno
import importlib.util
import os
import pathlib

import pytest

from convmixer_jax import storage
from convmixer_jax.errors import UserError
from convmixer_jax.storage import check_new, is_remote, path_of

# TensorStore's error, as Orbax 0.12 reports it.
NO_SPACE = (
  'RESOURCE_EXHAUSTED: Error writing local file "{0}/checkpoints/20.orbax-checkpoint-tmp/f": '
  'Failed writing: "{0}/checkpoints/20.orbax-checkpoint-tmp/_sharding.__lock": Failed to write '
  "8345 bytes to file 12: No space left on device [os_error_code='28']"
)


def test_paths_on_disks():
  assert path_of("runs/a") == pathlib.Path("runs/a")
  assert path_of(pathlib.Path("runs/a")) == pathlib.Path("runs/a")
  assert path_of("~/a") == pathlib.Path.home() / "a"
  assert not is_remote(path_of("runs/a"))


def test_other_object_stores_are_refused():
  with pytest.raises(UserError, match=r"s3://bucket/run: .*gs:// is the only"):
    path_of("s3://bucket/run")


def test_google_cloud_storage():
  if importlib.util.find_spec("gcsfs") is None:
    with pytest.raises(UserError, match=r"gcsfs is not .*pip install 'convmixer-jax\[gcs\]'"):
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
  with pytest.raises(UserError, match=r"b cannot be written to \(.*file: Not a directory\)"):
    check_new(tmp_path / "file" / "a" / "b")


def test_a_failed_save_is_one_line_with_checkpoint_disk_and_what_to_do(tmp_path):
  for step in (8, 10):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  with pytest.raises(UserError) as error, storage.reported(tmp_path):
    raise ValueError(NO_SPACE.format(tmp_path))
  message = str(error.value)
  assert message.startswith(f"{tmp_path}/checkpoints cannot be written: No space left on device (")
  assert "MiB are free). The last good checkpoint: " in message
  assert f"checkpoint: {tmp_path}/checkpoints/10. Free some space there and repeat" in message


def test_a_full_device_is_reported_and_other_errors_are_let_through(tmp_path):
  with (
    pytest.raises(UserError, match=r"No space left on device .*none, no save was finished"),
    storage.reported(tmp_path),
    open("/dev/full", "w") as file,
  ):
    file.write("a line")
  for other in (ValueError("shapes differ"), FileNotFoundError(errno.ENOENT, "missing", "x.jpg")):
    with pytest.raises(type(other)), storage.reported(tmp_path):
      raise other


def test_what_cannot_be_written_to_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
  storage.check_writable(tmp_path / "new" / "run")
  assert not (tmp_path / "new").exists()
  (tmp_path / "file").write_text("")
  with pytest.raises(
    UserError, match=r"run cannot be written to \(.*file: Not a directory\); name another"
  ):
    storage.check_writable(tmp_path / "file" / "run")

  def read_only(dir):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  # Root ignores permissions, and only a mount could be read-only.
  monkeypatch.setattr(storage.tempfile, "TemporaryFile", read_only)
  with pytest.raises(UserError, match=rf"\({tmp_path}: Read-only file system\); name another"):
    storage.check_writable(tmp_path / "new" / "run")
