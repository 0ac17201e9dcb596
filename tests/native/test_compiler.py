import ctypes
import pathlib
import shutil
import subprocess
import sys

import pytest

from convmixer_jax.native import compiler
from convmixer_jax.native.compiler import CompilerError, cache_directory, library


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.delenv("CXX", raising=False)
  if not shutil.which("c++"):
    pytest.skip("no C++ compiler")
  library.cache_clear()
  yield
  library.cache_clear()


def test_a_library_is_compiled_once_for_each_source_and_flags(tmp_path, monkeypatch):
  source = tmp_path / "answer.cc"
  source.write_text('extern "C" int answer() { return ANSWER; }')
  first = library(source, "-DANSWER=42")
  assert ctypes.CDLL(str(first)).answer() == 42
  made = first.stat().st_mtime_ns
  library.cache_clear()
  assert library(source, "-DANSWER=42") == first
  assert first.stat().st_mtime_ns == made
  other = library(source, "-DANSWER=43")
  assert ctypes.CDLL(str(other)).answer() == 43
  library.cache_clear()
  source.write_text('extern "C" int answer() { return ANSWER + 10; }')
  assert ctypes.CDLL(str(library(source, "-DANSWER=42"))).answer() == 52
  assert len(list(first.parent.iterdir())) == 3


def test_two_processes_at_once_leave_one_whole_library(tmp_path):
  source = tmp_path / "answer.cc"
  source.write_text('extern "C" int answer() { return 42; }')
  code = (
    "import ctypes, pathlib, sys; from convmixer_jax.native.compiler import library; "
    "print(ctypes.CDLL(str(library(pathlib.Path(sys.argv[1])))).answer())"
  )
  command = [sys.executable, "-c", code, str(source)]
  both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
  assert [process.communicate()[0] for process in both] == ["42\n", "42\n"]
  (made,) = (tmp_path / "cache" / "convmixer_jax").iterdir()
  assert made.suffix == ".so"


def test_errors_say_what_was_tried(tmp_path, monkeypatch):
  source = tmp_path / "wrong.cc"
  source.write_text("int f() { return nothing; }")
  with pytest.raises(CompilerError, match=r"(?s)failed with status 1.*wrong.cc.*'?nothing'?"):
    library(source)
  assert not list((tmp_path / "cache" / "convmixer_jax").iterdir())
  monkeypatch.setenv("CXX", "no-such-compiler --fast")
  library.cache_clear()
  with pytest.raises(CompilerError, match=r"'no-such-compiler' cannot be run .*\$CXX.*--fast"):
    library(source)


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
  """A cache directory below a file, which not even root can create."""
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
  compiler._is_writable.cache_clear()
  return tmp_path / "file"


def test_without_a_cache_a_library_is_made_for_this_process(tmp_path, no_cache, caplog):
  source = tmp_path / "answer.cc"
  source.write_text('extern "C" int answer() { return ANSWER; }')
  assert cache_directory() is None
  paths = [library(source, f"-DANSWER={n}") for n in (42, 43)]
  assert [ctypes.CDLL(str(path)).answer() for path in paths] == [42, 43]
  (warning,) = caplog.messages
  assert str(no_cache) in warning
  assert "Set XDG_CACHE_HOME to a writable directory" in warning


def test_what_was_made_for_a_process_goes_with_it(tmp_path, no_cache):
  source = tmp_path / "answer.cc"
  source.write_text('extern "C" int answer() { return 42; }')
  code = (
    "import pathlib, sys; from convmixer_jax.native.compiler import library; "
    "path = library(pathlib.Path(sys.argv[1])); print(path, path.exists())"
  )
  command = [sys.executable, "-c", code, str(source)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  path, existed = done.stdout.split()
  assert existed == "True"
  assert not pathlib.Path(path).parent.exists()


def test_a_cache_that_is_read_only_still_serves(tmp_path, monkeypatch):
  source = tmp_path / "answer.cc"
  source.write_text('extern "C" int answer() { return 42; }')
  made = library(source)
  library.cache_clear()

  def refuse(*arguments, **options):
    raise OSError("Read-only file system")

  monkeypatch.setattr(compiler.tempfile, "TemporaryFile", refuse)
  monkeypatch.setattr(compiler.tempfile, "TemporaryDirectory", refuse)
  assert library(source) == made
  with pytest.raises(CompilerError, match=r"answer-.* cannot be stored: .*Read-only"):
    library(source, "-O1")


def test_a_user_without_a_home_has_no_cache(monkeypatch):
  def no_home():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setattr(pathlib.Path, "home", no_home)
  compiler._is_writable.cache_clear()
  assert cache_directory() is None
