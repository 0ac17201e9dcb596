"""Registers and spills of our GPU kernels, from NVIDIA's assembler; needs no GPU.

With jax[cuda12] installed (5 GB), run from the repository's root:
  python -m benchmarks.gpu_registers [--targets=h100,a100] [--channels=256,768,1024,1536]

Each row is one kernel of `depthwise="pallas"` for 64 images in bfloat16. A spilled register is kept
in memory, which costs most of what the kernel gains.
"""

import os
import pathlib
import re
import tempfile

from absl import app, flags
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import nvidia.cuda_nvcc

from convmixer_jax.aot import targets
from convmixer_jax.depthwise import pallas_gpu
from convmixer_jax.parallel import sharding

# Height and width, and kernel sizes: 224 pixels in patches of 7 and 14, and the models' kernels.
SHAPES = ((32, 9), (32, 7), (16, 9), (16, 5))
_INFO = re.compile(
  r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill "
  r"stores, (\d+) bytes spill loads.*?Used (\d+) registers",
  re.DOTALL,
)


def wrap_assembler(root: pathlib.Path) -> pathlib.Path:
  """Makes a CUDA directory whose ptxas also reports registers; returns the file of the reports."""
  real = pathlib.Path(nvidia.cuda_nvcc.__path__[0])
  log = root / "ptxas.log"
  (root / "bin").mkdir()
  (root / "nvvm").symlink_to(real / "nvvm")
  wrapper = root / "bin" / "ptxas"
  wrapper.write_text(
    f'#!/bin/sh\ncase "$*" in *version*) exec {real}/bin/ptxas "$@";; esac\n'
    f'exec {real}/bin/ptxas -v "$@" 2>>{log}\n'
  )
  wrapper.chmod(0o755)
  flags_before = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{flags_before} --xla_gpu_enable_libnvptxcompiler=false"
  return log


def measure(mesh: Mesh, size: int, kernel_size: int, channels: int, log: pathlib.Path) -> None:
  """Compiles forward and backward pass, and prints a row of a Markdown table for each kernel."""
  replicated = sharding.replicated(mesh)
  x_cbhw = jax.ShapeDtypeStruct((channels, 64, size, size), jnp.bfloat16, sharding=replicated)
  kernel = jax.ShapeDtypeStruct(
    (kernel_size, kernel_size, channels), jnp.bfloat16, sharding=replicated
  )
  log.write_text("")

  def both(x_cbhw: jax.Array, kernel: jax.Array, y_grad: jax.Array) -> tuple:
    return pallas_gpu.forward(x_cbhw, kernel), pallas_gpu.backward(x_cbhw, kernel, y_grad)

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = jax.jit(both, out_shardings=replicated).lower(x_cbhw, kernel, x_cbhw)
  lowered.compile(
    compiler_options={
      "xla_gpu_libnvjitlink_mode": "LIB_NV_JIT_LINK_MODE_DISABLED",
      "xla_gpu_cuda_data_dir": str(log.parent),
    }
  )
  for name, chip, stack, stores, loads, registers in _INFO.findall(log.read_text()):
    if name.startswith("depthwise"):
      print(
        f"| {chip} | {channels} | {size}x{size} | {kernel_size} | {name} | {registers} | {stack} "
        f"| {stores} | {loads} |",
        flush=True,
      )


def main(argv: list[str]) -> None:
  """All rows."""
  del argv
  options = flags.FLAGS
  print(
    "| for | channels | map | kernel | | registers | stack, bytes | stores spilled | loads spilled "
    "|\n" + "|---" * 9 + "|"
  )
  with tempfile.TemporaryDirectory() as root:
    log = wrap_assembler(pathlib.Path(root))
    for name in options.targets:
      target = targets.parse(name)
      targets.prepare(target)
      mesh = sharding.make_mesh(target.devices())
      for size, kernel_size in SHAPES:
        for channels in map(int, options.channels):
          measure(mesh, size, kernel_size, channels, log)


if __name__ == "__main__":
  flags.DEFINE_list("targets", ["h100", "a100"], "GPUs, as for convmixer_jax.compile.")
  flags.DEFINE_list("channels", ["256", "768", "1024", "1536"], "Widths of the feature maps.")
  app.run(main)
