import os
import re

import jax
import jax.numpy as jnp
import pytest

from convmixer_jax import compiled, compiling
from convmixer_jax.compiling import Announced


@pytest.fixture
def no_choice(tmp_path, monkeypatch):
  """A user who has said nothing about JAX's cache."""
  before = jax.config.jax_compilation_cache_dir
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  yield tmp_path / "cache"
  jax.config.update("jax_compilation_cache_dir", before)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_each_compilation_is_said_once(caplog):
  calls = []

  def double(scale, batch):
    calls.append(batch["x"].shape)
    return scale * batch["x"]

  announced = Announced(jax.jit(double), "the doubling")
  before = Announced.seconds
  with caplog.at_level("INFO"):
    for size in (3, 3, 5, 3, 5):
      assert announced(2.0, {"x": jnp.ones(size)}).tolist() == [2.0] * size
  assert calls == [(3,), (5,)]
  found = [record.getMessage() for record in caplog.records]
  assert found[::2] == ["compiling the doubling ..."] * 2
  for message in found[1::2]:
    assert re.fullmatch(r"compiled the doubling in \d+\.\d s(, from the cache in .+)?", message)
  assert Announced.seconds > before


def test_what_comes_out_of_the_cache_is_said(caplog):
  """The second function is the first one again, as in another process: under no name JAX knows."""
  source = f"def unlike_others_{os.getpid()}(x):\n  return x * {os.getpid()} + 0.125"
  found = []
  for _ in range(2):
    names = {}
    exec(source, names)
    (function,) = (value for name, value in names.items() if name.startswith("unlike"))
    with caplog.at_level("INFO"):
      Announced(jax.jit(function), "it")(jnp.ones(3))
    found.append(caplog.messages[-1])
  assert "from the cache" not in found[0]
  assert found[1].endswith(f"from the cache in {jax.config.jax_compilation_cache_dir}")


def test_the_cache_is_on_by_default(no_choice):
  compiling.use_cache()
  directory = jax.config.jax_compilation_cache_dir
  assert re.fullmatch(rf"{no_choice}/convmixer_jax/xla-[0-9a-f]{{16}}", directory)


def test_the_users_own_choice_stays(no_choice, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
  compiling.use_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    compiling.use_cache()
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  assert jax.config.jax_compilation_cache_dir is None


def test_a_home_that_cannot_be_written_to_costs_only_the_cache(no_choice, monkeypatch):
  monkeypatch.setattr(compiled, "cache_directory", lambda: None)
  compiling.use_cache()
  assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_programs_make_room(no_choice, monkeypatch):
  compiling.use_cache()
  directory = no_choice / "convmixer_jax" / os.path.basename(jax.config.jax_compilation_cache_dir)
  directory.mkdir()
  for age in range(5):
    file = directory / f"jit_{age}-cache"
    file.write_bytes(bytes(100))
    os.utime(file, (1000 - age, 1000 - age))
  monkeypatch.setattr(compiling, "CACHE_BYTES", 250)
  jax.config.update("jax_compilation_cache_dir", None)
  compiling.use_cache()
  assert {file.name for file in directory.iterdir()} == {"jit_0-cache", "jit_1-cache"}
