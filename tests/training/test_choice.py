import json
import logging
import types

import jax
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.depthwise import trial
from convmixer_jax.native import compiler
from convmixer_jax.parallel import sharding
from convmixer_jax.training import choice


@pytest.fixture
def config(configs):
  config = config_lib.read(configs / "digits.py")
  config.data.batch_size = 8
  config.model.update(dim=4, depth=1, kernel_size=3)
  return config


@pytest.fixture
def mesh(monkeypatch, tmp_path):
  """A stand-in for an accelerator's mesh, whose device computes on CPU."""
  monkeypatch.setattr(compiler, "cache_directory", lambda: tmp_path / "cache")
  monkeypatch.setitem(choice.CANDIDATES, "gpu", ("banded", "taps"))
  cpu = jax.local_devices()[0]
  tried = []
  real = trial.try_each

  def try_each(candidates, shape, kernel_size, dtype, device):
    tried.append((candidates, shape, kernel_size, dtype))
    return real(candidates, shape, kernel_size, dtype, cpu)

  monkeypatch.setattr(trial, "try_each", try_each)
  device = types.SimpleNamespace(platform="gpu", device_kind="a GPU")
  return types.SimpleNamespace(local_devices=[device], size=2, tried=tried)


def test_the_choice_is_logged_and_kept_by_run_and_machine(config, mesh, tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    chosen = choice.with_depthwise(config, mesh, tmp_path / "run").model.depthwise
  assert chosen in ("banded", "taps") and config.model.depthwise is None
  assert mesh.tried == [(("banded", "taps"), (4, 8, 8, 4), 3, "float32")]
  (line,) = caplog.messages
  assert line.startswith(
    f"depthwise convolution on a GPU: {chosen}, for 4x8x8x4, kernel 3, float32"
  )
  assert "banded " in line and "taps " in line and line.count(" ms") == 2
  other = "banded" if chosen == "taps" else "taps"
  files = [tmp_path / "run" / choice.FILE, tmp_path / "cache" / choice.FILE]
  for file in files:
    ((key, name),) = json.loads(file.read_text()).items()
    assert name == chosen
  files[1].write_text(json.dumps({key: other}))  # the machine has another opinion now
  again = choice.with_depthwise(config, mesh, tmp_path / "run")
  assert again.model.depthwise == chosen
  fresh = choice.with_depthwise(config, mesh, tmp_path / "another")
  assert fresh.model.depthwise == chosen  # the run's choice is also the machine's
  files[0].write_text("{")
  files[1].write_text(json.dumps({key: "gone"}))
  choice.with_depthwise(config, mesh, tmp_path / "run")
  assert len(mesh.tried) == 2


def test_what_is_set_and_what_is_for_cpu_stays(config, mesh, tmp_path):
  assert choice.with_depthwise(config, sharding.make_mesh(), tmp_path) is config
  config.model.depthwise = "xla"
  assert choice.with_depthwise(config, mesh, tmp_path) is config
  assert not mesh.tried and not list(tmp_path.iterdir())


def test_xla_is_what_none_means_on_accelerators():
  """The name would leave the gradients of the whole model to JAX."""
  assert choice.setting("xla") is None and choice.setting("pallas") == "pallas"
