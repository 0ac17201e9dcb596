"""Compiles a step of one block of each ImageNet recipe with libtpu, which needs no TPU.

Memory and cycles are the compiler's account, of the version that .ci/run installs; nothing is run.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = [
  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
  pytest.mark.slow,
]

# GiB on one chip for 64 images, without augmentation.
MEMORY = {
  ("imagenet_1536_20", "v5e:1x1"): 1.22,
  ("imagenet_1536_20", "v5p:1x1x1"): 1.31,
  ("imagenet_1536_20", "v6e:1x1"): 1.23,
  ("imagenet_768_32", "v5e:1x1"): 0.558,
  ("imagenet_768_32", "v5p:1x1x1"): 0.737,
  ("imagenet_768_32", "v6e:1x1"): 0.62,
  ("imagenet_1024_20", "v5e:1x1"): 0.172,
  ("imagenet_1024_20", "v5p:1x1x1"): 0.302,
  ("imagenet_1024_20", "v6e:1x1"): 0.321,
}
# Millions of cycles, without and with the floors of memory and matrix units. The schedules of the
# others take libtpu minutes to write.
CYCLES = {("imagenet_1536_20", "v5e:1x1"): (20.3, 22.1)}

PROGRAM = """
import json, pathlib, sys
from convmixer_jax import compile as command
from convmixer_jax import config as config_lib
from convmixer_jax.aot import candidates, targets

name, target, dump = sys.argv[1], targets.parse(sys.argv[2]), sys.argv[3]
dump = pathlib.Path(dump) if dump else None
targets.prepare(target, dump)
config = config_lib.read(config_lib.path_of(name))
config.data.update(batch_size=64, eval_batch_size=64)
compilation = command.Compilation(target, 100, dump)
found = compilation.train(candidates.one_block(config, "pallas"))
parts = compilation.cycles(found) or {}
cycles = {part: (of_part.bundles, of_part.with_floors) for part, of_part in parts.items()}
print(json.dumps({"refused": found.refused, "total": found.total, "cycles": cycles}))
"""


@pytest.mark.parametrize(("config", "target"), MEMORY)
def test_a_step_compiles_within_its_memory_and_cycles(config, target, tmp_path):
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  most = CYCLES.get((config, target))
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, config, target, str(tmp_path) if most else ""],
    cwd=pathlib.Path(__file__).parents[2],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["refused"] is None
  assert found["total"] / 2**30 == pytest.approx(MEMORY[config, target], rel=0.03)
  if most:
    parts = found["cycles"]
    assert all(parts[name][0] > 0 for name in ("depthwise", "pointwise", "update"))
    for part_cycles, limit in zip(zip(*parts.values(), strict=True), most, strict=True):
      assert sum(part_cycles) / 1e6 < 1.01 * limit
