"""Which depthwise convolution a run on accelerators uses, if its config leaves that open."""

import json
import logging
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import storage
from convmixer_jax.depthwise import CANDIDATES, trial
from convmixer_jax.native import compiler
from convmixer_jax.parallel import processes

FILE = "depthwise.json"  # in the workdir, and in the cache directory

_log = logging.getLogger(__name__)


def with_depthwise(
  config: config_dict.ConfigDict, mesh: Mesh, workdir: pathlib.Path
) -> config_dict.ConfigDict:
  """The config with `model.depthwise` set to the fastest implementation that is right.

  The candidates run on one device, with the feature maps of one device. The choice is kept in the
  workdir, so that a resumed run stays the same, and in the cache of this machine. All processes
  take that of process 0. On CPU, `model.depthwise` stays None, see `by_platform`.

  Args:
    config: as returned by `build.resolve`.
    mesh: devices of the run.
    workdir: directory of the run.
  """
  device = mesh.local_devices[0]
  candidates = CANDIDATES.get(device.platform, ())
  if config.model.depthwise is not None or device.platform == "cpu" or not candidates:
    return config
  name = ""
  if jax.process_index() == 0:
    name = _choose(candidates, config, mesh.size, device, workdir)
  chosen = config.copy_and_resolve_references()
  chosen.model.depthwise = setting(processes.broadcast_text(name))
  return chosen


def setting(implementation: str) -> str | None:
  """The `model.depthwise` of a run that takes an implementation where its config has None.

  That of XLA is what None is lowered to on accelerators, with our gradients; "xla" leaves all
  gradients of the model to JAX, which takes more memory.
  """
  return None if implementation == "xla" else implementation


def _choose(
  candidates: tuple[str, ...],
  config: config_dict.ConfigDict,
  devices: int,
  device: jax.Device,
  workdir: pathlib.Path,
) -> str:
  """The choice for this device and these feature maps: the workdir's, the cache's or a new one."""
  model, side = config.model, config.data.image_size // config.model.patch_size
  batch = max(1, config.data.batch_size // config.step.accumulate_steps // devices)
  shape_bhwc = batch, side, side, model.dim
  maps = f"{'x'.join(map(str, shape_bhwc))}, kernel {model.kernel_size}, {model.dtype}"
  key = f"{device.device_kind}, JAX {jax.__version__}, {' '.join(candidates)}, {maps}"
  cache = compiler.cache_directory()
  files = [workdir / FILE] + ([cache / FILE] if cache else [])
  name = next((known[key] for known in map(_read, files) if known.get(key) in candidates), None)
  if name is not None:
    _log.info("depthwise convolution on %s: %s, as chosen before", device.device_kind, name)
  else:
    trials = trial.try_each(candidates, shape_bhwc, model.kernel_size, model.dtype, device)
    name = trial.fastest(trials)
    told = device.device_kind, name, maps, "; ".join(map(str, trials))
    _log.info("depthwise convolution on %s: %s, for %s (%s)", *told)
  for file in files:
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(file, json.dumps(_read(file) | {key: name}, indent=2) + "\n")
  return name


def _read(file: pathlib.Path) -> dict[str, str]:
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError):  # missing or corrupt: chosen anew
    return {}
