"""The device mesh, the shardings of batches and states, and placing host arrays on it."""

import logging
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from convmixer_jax.errors import UserError

_log = logging.getLogger(__name__)

# A batch is sharded over all devices, parameters only over those of one row, along "fsdp".
BATCH_AXES = ("data", "fsdp")
# Smaller arrays are not worth a collective of their own.
_SMALLEST_CUT = 4096


def make_mesh(devices: list[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
  """A mesh with the axes "data" and "fsdp", of all devices by default.

  Args:
    devices: the devices of the mesh; None for all.
    fsdp: size of the axis "fsdp".

  Raises:
    UserError: if `fsdp` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if len(devices) % fsdp:
    raise UserError(
      f"config.parallel.fsdp is {fsdp}, which does not divide the {len(devices)} devices"
    )
  # Ordered by process, not by the topology of a TPU, so that each process has a contiguous part of
  # every batch. Auto: the compiler chooses the shardings of intermediate values.
  rows = np.array(sorted(devices, key=lambda d: (d.process_index, d.id))).reshape(-1, fsdp)
  return Mesh(rows, BATCH_AXES, (AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on each device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """One axis, by default the first, sharded over all devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def state_sharding(mesh: Mesh, tree: Any) -> Any:
  """The sharding of each array of a state.

  An array with at least 4,096 elements is sharded over the mesh's "fsdp" along its
  longest axis that "fsdp" divides; of equally long ones, the last. All other arrays
  are replicated.

  Args:
    mesh: devices to shard over.
    tree: arrays or their shapes.
  """
  return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x.shape, mesh.shape["fsdp"])), tree)


def _spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
  axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
  if parts == 1 or not axes or math.prod(shape) < _SMALLEST_CUT:
    return PartitionSpec()
  longest = max(axes, key=lambda axis: (shape[axis], axis))
  return PartitionSpec(*[None] * longest, "fsdp")


def describe(mesh: Mesh, params: Any) -> str:
  """One line that describes the mesh and how the parameters are sharded."""
  leaves = jax.tree.leaves(params)
  shardings = jax.tree.leaves(state_sharding(mesh, params))
  sizes = [math.prod(x.shape) for x in leaves]
  is_cut = [not sharding.is_fully_replicated for sharding in shardings]
  device = mesh.devices.flat[0]
  text = (
    f"mesh of {mesh.size} x {device.device_kind}: data={mesh.shape['data']}, "
    f"fsdp={mesh.shape['fsdp']}; {sum(sizes):,} parameters"
  )
  if not any(is_cut):
    return f"{text}, replicated on each device"
  share = sum(size for size, this in zip(sizes, is_cut, strict=True) if this) / sum(sizes)
  return (
    f"{text}: {sum(is_cut)} arrays with {share:.1%} of them, and their moments, are sharded over "
    "fsdp along the longest axis that it divides; the others are replicated"
  )


def device_put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """Copies an array, which every process has in full, to new device memory with this sharding."""
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index].copy())
