import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.errors import UserError
from convmixer_jax.storage import path_of
from convmixer_jax.training.profile import Profile


def trace(directory):
  (file,) = directory.rglob("*.trace.json.gz")
  return json.loads(gzip.decompress(file.read_bytes()))


def run(profile, steps):
  """Named steps, of which the trace should have some."""
  for step in steps:
    profile.begin(step)
    with jax.profiler.TraceAnnotation(f"step number {step}"):
      values = jnp.ones(3) * step
    profile.end(step, values)


@pytest.mark.parametrize(("steps", "traced"), [((2, 3), {2, 3}), ((4, 9), {4, 5})])
def test_the_steps_that_are_named_are_traced(tmp_path, steps, traced):
  """Also if the run ends before the last one of them."""
  with Profile(steps, tmp_path) as profile:
    run(profile, range(1, 6))
  names = {event.get("name", "") for event in trace(tmp_path / "profile")["traceEvents"]}
  assert {n for n in range(1, 6) if f"step number {n}" in names} == traced


def test_without_steps_there_is_no_trace(tmp_path):
  with Profile(None, tmp_path) as profile:
    run(profile, range(1, 3))
  assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [(0, 3), (5, 2), (1,), (1, 2, 3)])
def test_steps_must_be_first_and_last(steps):
  config = config_lib.read(config_lib.path_of("digits"))
  config.run.profile_steps = steps
  with pytest.raises(UserError, match=r"config\.run\.profile_steps is .*must be \(first, last\)"):
    config_lib.validate(config)


def test_a_bucket_takes_no_traces():
  pytest.importorskip("gcsfs")
  with pytest.raises(UserError, match="local disks only"):
    Profile((1, 2), path_of("gs://bucket/run"))
