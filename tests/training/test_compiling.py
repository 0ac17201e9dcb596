import os
import re

import jax
import jax.numpy as jnp

from convmixer_jax.training.compiling import Announced


def test_each_compilation_is_said_once(caplog):
  calls = []

  def double(scale, batch):
    calls.append(batch["x"].shape)
    return scale * batch["x"]

  announced = Announced(jax.jit(double), "the doubling")
  with caplog.at_level("INFO"):
    for size in (3, 3, 5, 3, 5):
      assert announced(2.0, {"x": jnp.ones(size)}).tolist() == [2.0] * size
  assert calls == [(3,), (5,)]
  found = [record.getMessage() for record in caplog.records]
  assert found[::2] == ["compiling the doubling ..."] * 2
  for message in found[1::2]:
    assert re.fullmatch(r"compiled the doubling in \d+\.\d s(, from the cache in .+)?", message)


def test_what_comes_out_of_the_cache_is_said(caplog):
  """The second function has the same code, but is new to JAX, as it would be in another process."""
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
