"""The devices that a run can be compiled for: their names, their peaks, and how to ask for them.

A compiler is asked through a topology, a description of devices that need not exist.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

from convmixer_jax.errors import UserError, missing

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of a device.

  Attributes:
    matrix: operations/s of the matrix units in bfloat16.
    vector: operations/s of the vector units in float32.
    bandwidth: bytes/s of the main memory.
    memory: bytes that a program can use.
    link: bytes/s that it sends to the other devices of its host or slice, all links together.
    clock: cycles/s, of TPUs.
    cores: TPU cores of a device, which share the work.
    gpu: of a GPU, what its compiler asks for: compute capability, shared memory of a core and of a
      block, cores, float32 units of a core, L2 cache, and GHz.
  """

  matrix: float
  vector: float
  bandwidth: float
  memory: int
  link: float
  clock: float = 0.0
  cores: int = 1
  gpu: tuple[Any, ...] = ()


# TPUs: cloud.google.com/tpu/docs, the page of each version (bfloat16, HBM bandwidth, interconnect);
# memory as libtpu's compiler states it when it refuses a program. Clock: the bfloat16 peak over
# 2 operations of all matrix units (4 of 128 x 128 in a core of v5e and v5p, 4 of 256 x 256 in
# v6e). Vector: 8 x 128 lanes with 4 units at that clock; an estimate, no document states it.
# GPUs: NVIDIA's data sheets of the SXM modules, dense. Of their memory JAX takes three quarters
# unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
CHIPS = {
  "v5e": Chip(197e12, 6.1e12, 819e9, int(15.75 * _GIB), 200e9, 1.5e9),
  "v5p": Chip(459e12, 14.3e12, 2765e9, int(95.73 * _GIB), 600e9, 1.75e9, cores=2),
  "v6e": Chip(918e12, 7.2e12, 1640e9, int(31.24 * _GIB), 448e9, 1.75e9),
  "a100": Chip(
    312e12, 19.5e12, 1555e9, 42_000_000_000, 300e9, gpu=((8, 0), 167936, 166912, 108, 64, 40, 1.41)
  ),
  "h100": Chip(
    989e12, 67e12, 3352e9, 84_929_347_584, 450e9, gpu=((9, 0), 233472, 232448, 132, 128, 50, 1.98)
  ),
  "h200": Chip(
    989e12, 67e12, 4800e9, 150_000_000_000, 450e9, gpu=((9, 0), 233472, 232448, 132, 128, 50, 1.98)
  ),
}
TPUS = tuple(name for name, chip in CHIPS.items() if not chip.gpu)
GPUS = tuple(name for name, chip in CHIPS.items() if chip.gpu)

ALLOWED = (
  "v5e:16x16, v6e:2x4, v5p:4x4x8 (chips along each axis of a TPU slice), h100x8, h200, a100x8 "
  "(GPUs of one host), cpu, cpux8"
)
HELP = (
  f"Devices to compile for: {ALLOWED}. TPUs need the extra aot-tpu (libtpu, 0.6 GB), GPUs the "
  "extra cuda (5.6 GB); neither needs the devices."
)


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices of one kind.

  Attributes:
    name: as given by the user.
    platform: "tpu", "gpu" or "cpu".
    chip: its name in `CHIPS`, or "cpu".
    shape: devices along each axis of the topology.
  """

  name: str
  platform: str
  chip: str
  shape: tuple[int, ...]

  @property
  def count(self) -> int:
    """Number of devices."""
    return math.prod(self.shape)

  @property
  def peaks(self) -> Chip | None:
    """Those of a device; None for CPUs."""
    return CHIPS.get(self.chip)

  @property
  def memory(self) -> int:
    """Bytes that a program can use on a device; of CPUs, the machine's memory over their number."""
    if self.peaks is None:
      return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.count
    if self.platform == "gpu":
      return int(self.peaks.memory * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75)))
    return self.peaks.memory

  def devices(self) -> list[Any]:
    """The devices, for a mesh. Starts a backend of JAX; call `prepare` before.

    Raises:
      UserError: if the compiler knows no such topology, or an extra is not installed.
    """
    import jax
    from jax.experimental import topologies

    if self.platform == "cpu":
      devices = jax.devices("cpu")
      if len(devices) < self.count:
        raise UserError(
          f"--target={self.name}: JAX has {len(devices)} CPU devices: set JAX_NUM_CPU_DEVICES"
        )
      return devices[: self.count]
    try:
      if self.platform == "gpu":
        found = topologies.get_topology_desc(
          platform="cuda", target_config=_target_config(self), topology=f"1x1x{self.count}"
        )
      else:
        sides = "x".join(map(str, self.shape))
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{self.chip}:{sides}")
    except jax.errors.JaxRuntimeError as error:
      raise UserError(f"--target={self.name}: {_first_line(error)}") from None
    return list(found.devices)


def parse(text: str) -> Target:
  """The target of this name.

  Raises:
    UserError: if there is none; says what is allowed.
  """
  match = re.fullmatch(r"(\w+?)(?::(\d+(?:x\d+)*)|x(\d+))?", text)
  if match is None:
    raise UserError(f"--target={text}: allowed are such as {ALLOWED}")
  chip, sides, number = match[1], match[2], match[3]
  shape = tuple(map(int, (sides or number or "1").split("x")))
  if 0 in shape:
    raise UserError(f"--target={text} has no devices: allowed are such as {ALLOWED}")
  if chip in TPUS:
    dimensions = 3 if chip == "v5p" else 2
    if sides is None or len(shape) != dimensions:
      such_as = "v5p:4x4x8" if dimensions == 3 else f"{chip}:4x4"
      raise UserError(
        f"--target={text}: a slice of {chip} has {dimensions} axes: give its chips along each, "
        f"such as {such_as}"
      )
    return Target(text, "tpu", chip, shape)
  if chip not in (*GPUS, "cpu") or sides is not None:
    raise UserError(f"--target={text}: allowed are such as {ALLOWED}")
  if chip in GPUS and shape[0] > 8:
    raise UserError(f"--target={text}: GPUs of one host are at most 8, such as --target={chip}x8")
  return Target(text, "cpu" if chip == "cpu" else "gpu", chip, shape)


def prepare(target: Target, dump: pathlib.Path | None = None) -> None:
  """Sets what JAX's backends read when they start: JAX computes on CPU, and compilers need flags.

  Args:
    target: to compile for.
    dump: a directory for the schedules of TPU programs.

  Raises:
    UserError: if the compiler is not installed; says what to install.
  """
  import jax

  needs = {"tpu": ("libtpu", "aot-tpu"), "gpu": ("jax_cuda12_plugin", "cuda")}
  if target.platform in needs:
    module, extra = needs[target.platform]
    if importlib.util.find_spec(module) is None:
      raise missing(module, extra)
  jax.config.update("jax_platforms", "cpu")
  if target.platform == "cpu":
    if target.count > 1 and "JAX_NUM_CPU_DEVICES" not in os.environ:
      jax.config.update("jax_num_cpu_devices", target.count)
  elif target.platform == "gpu":
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 {flags}"  # autotuning measures
  else:
    # libtpu asks the host, not the network, which machine this is, and any machine will do.
    os.environ |= {
      "TPU_SKIP_MDS_QUERY": "1",
      "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_ACCELERATOR_TYPE": "v5litepod-8",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    if dump is not None:
      flags = os.environ.get("LIBTPU_INIT_ARGS", "")
      os.environ["LIBTPU_INIT_ARGS"] = (
        f"{flags} --xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles"
      )


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0]


def _target_config(target: Target) -> str:
  """XLA's description of a GPU, a GpuTargetConfigProto as text."""
  chip = CHIPS[target.chip]
  (major, minor), per_core, per_block, cores, units, cache, clock = chip.gpu
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {per_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {cache * 2**20}
  clock_rate_ghz: {clock}
  device_memory_size: {chip.memory}
  shared_memory_per_block_optin: {per_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "NVIDIA {target.chip.upper()}"
"""
