import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.model.variables import fresh, identity, shapes

ROOT = pathlib.Path(__file__).parents[2]
MODEL = ConvMixer(8, 2, 3, 2, 5, "relu", norm_epsilon=1e-3)


def test_shapes_are_those_of_fresh_variables():
  expected = MODEL.init(jax.random.key(3), jnp.zeros((1, 8, 8, 13)))
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found = shapes(MODEL, 13, here)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), expected
  )
  assert {x.sharding for x in jax.tree.leaves(found)} == {here}
  for a, b in zip(*map(jax.tree.leaves, (fresh(MODEL, 13, 3), expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_shapes_ask_for_no_device():
  """A sweep must leave the accelerator to its runs."""
  code = (
    "from convmixer_jax.model.variables import *;print(len(shapes(ConvMixer(8, 2, 3, 2, 5), 3)))"
  )
  environment = {**os.environ, "JAX_PLATFORMS": "none"}
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.stdout == "2\n", done.stderr


def test_a_model_is_its_identity():
  assert ConvMixer(**identity(MODEL)) == MODEL
  assert identity(MODEL.clone(dtype=jnp.bfloat16, dropout=0.5, scan=True)) == identity(MODEL)
