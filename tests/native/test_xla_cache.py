import os
import re

import jax
import pytest

from convmixer_jax.native import compiler, xla_cache


@pytest.fixture
def no_choice(tmp_path, monkeypatch):
  """A user who has not configured JAX's cache."""
  before = jax.config.jax_compilation_cache_dir
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  yield tmp_path / "cache"
  jax.config.update("jax_compilation_cache_dir", before)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_the_cache_is_on_by_default(no_choice):
  xla_cache.use_cache()
  directory = jax.config.jax_compilation_cache_dir
  assert re.fullmatch(rf"{no_choice}/convmixer_jax/xla-[0-9a-f]{{16}}", directory)


def test_the_users_own_choice_stays(no_choice, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
  xla_cache.use_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    xla_cache.use_cache()
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  assert jax.config.jax_compilation_cache_dir is None


def test_a_home_that_cannot_be_written_to_costs_only_the_cache(no_choice, monkeypatch):
  monkeypatch.setattr(compiler, "cache_directory", lambda: None)
  xla_cache.use_cache()
  assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_programs_make_room(no_choice, monkeypatch):
  xla_cache.use_cache()
  directory = no_choice / "convmixer_jax" / os.path.basename(jax.config.jax_compilation_cache_dir)
  directory.mkdir()
  for age in range(5):
    file = directory / f"jit_{age}-cache"
    file.write_bytes(bytes(100))
    os.utime(file, (1000 - age, 1000 - age))
  monkeypatch.setattr(xla_cache, "CACHE_BYTES", 250)
  jax.config.update("jax_compilation_cache_dir", None)
  xla_cache.use_cache()
  assert {file.name for file in directory.iterdir()} == {"jit_0-cache", "jit_1-cache"}
