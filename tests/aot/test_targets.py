import importlib.util
import os

import pytest

from convmixer_jax.aot import targets
from convmixer_jax.errors import UserError


@pytest.mark.parametrize(
  ("text", "platform", "chip", "shape"),
  [
    ("v5e:16x16", "tpu", "v5e", (16, 16)),
    ("v5p:4x4x8", "tpu", "v5p", (4, 4, 8)),
    ("v6e:2x4", "tpu", "v6e", (2, 4)),
    ("h100x8", "gpu", "h100", (8,)),
    ("h200", "gpu", "h200", (1,)),
    ("cpu", "cpu", "cpu", (1,)),
    ("cpux8", "cpu", "cpu", (8,)),
  ],
)
def test_targets(text, platform, chip, shape):
  assert targets.parse(text) == targets.Target(text, platform, chip, shape)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("v7x:2x2", "--target=v7x:2x2: allowed are such as v5e:16x16"),
    ("v5e", "a slice of v5e has 2 axes: .* such as v5e:4x4"),
    ("v5p:4x4", "a slice of v5p has 3 axes: .* such as v5p:4x4x8"),
    ("v5ex8", "2 axes"),
    ("h100:8", "allowed are such as"),
    ("h100x16", "h100x16: GPUs of one host are at most 8"),
    ("cpux0", "has no devices"),
    ("v5e:2x", "allowed are such as"),
    ("", "allowed are such as"),
  ],
)
def test_what_is_no_target_says_what_is(text, message):
  with pytest.raises(UserError, match=message):
    targets.parse(text)


def test_of_a_gpu_only_what_jax_takes_is_memory(monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  whole = targets.CHIPS["h100"].memory
  assert targets.parse("h100").memory == int(0.75 * whole)
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
  assert targets.parse("h100").memory == int(0.9 * whole)
  assert targets.parse("v5e:2x2").memory == int(15.75 * 2**30)


@pytest.mark.parametrize(
  ("text", "message"),
  [("v5e:2x2", r"libtpu.*\[aot-tpu\]"), ("h100", r"jax_cuda12_plugin.*\[cuda\]")],
)
def test_without_the_compiler_one_line_says_what_to_install(text, message, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  before = dict(os.environ)
  with pytest.raises(UserError, match=message):
    targets.prepare(targets.parse(text))
  assert dict(os.environ) == before
