"""Compiles the TPU kernels with libtpu, the real compiler, which needs no TPU.

The cycles are the compiler's account, of the version that is named here; nothing is run.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
  pytest.mark.slow,
]

# Topology; batch, height, width, channels, kernel size, dtype; most cycles of forward and gradient.
# Where the bound is None it only has to compile.
CASES = [
  ("v5e:2x4", (64, 32, 32, 64, 9, "bfloat16"), (33_000, 39_000)),
  ("v5p:2x2x1", (64, 32, 32, 64, 9, "bfloat16"), None),
  ("v6e:2x4", (64, 32, 32, 64, 9, "bfloat16"), None),
  ("v5e:2x4", (64, 32, 32, 64, 9, "float32"), None),
  ("v5e:2x4", (64, 7, 7, 10, 9, "bfloat16"), None),
  ("v5e:2x4", (64, 14, 14, 10, 8, "bfloat16"), None),
  ("v5e:2x4", (33, 16, 64, 6, 15, "bfloat16"), None),
  ("v5p:2x2x1", (512, 28, 28, 6, 7, "float32"), None),
  ("v6e:2x4", (64, 64, 64, 4, 9, "float32"), None),
]

PROGRAM = """
import json, os, pathlib, sys
topology, folder, batch, height, width, channels, size, dtype = json.loads(sys.argv[1])
os.environ["LIBTPU_INIT_ARGS"] = (
  f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
  "--xla_jf_dump_llo_pass_label_regex=final_bundles"
)
import jax
from jax.experimental import topologies
from convmixer_jax.aot import bundles
from convmixer_jax.depthwise import pallas_tpu

device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
place = jax.sharding.SingleDeviceSharding(device)
def argument(*shape):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
x, kernel = argument(channels, batch, height, width), argument(size, size, channels)
jax.jit(pallas_tpu.forward).lower(x, kernel).compile()
jax.jit(pallas_tpu.backward).lower(x, kernel, x).compile()
print(json.dumps({
  name: max(
    bundles.cycles(path.read_text())
    for path in pathlib.Path(folder).glob(f"*-{name}.*-01-final_bundles.txt")
  )
  for name in ("depthwise_banded", "depthwise_banded_gradient")
}))
"""


@pytest.mark.parametrize(("topology", "case", "most"), CASES, ids=str)
def test_kernels_compile_within_their_cycles(topology, case, most, tmp_path):
  settings = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps([topology, str(tmp_path), *case])],
    env={**os.environ, **settings},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  cycles = json.loads(done.stdout.splitlines()[-1])
  if most and importlib.metadata.version("libtpu") == "0.0.50.1":
    assert cycles["depthwise_banded"] <= most[0], cycles
    assert cycles["depthwise_banded_gradient"] <= most[1], cycles
