"""Transfer of host batches to the mesh, and caching of images in host or device memory."""

from collections.abc import Mapping
import dataclasses
import logging

import jax
from jax.sharding import Mesh
import numpy as np

from convmixer_jax.data.batches import Batches, in_memory, read
from convmixer_jax.data.datasets import ArraySource
from convmixer_jax.errors import check_name
from convmixer_jax.parallel.sharding import batch_sharding, device_put, replicated

_log = logging.getLogger(__name__)

CACHES = ("none", "host", "device")


class ShardBatch:
  """Shards host batches over the mesh, and gathers images that are already on the devices.

  Args:
    mesh: devices to shard the first axis of a batch over.
    resident: the examples that batches of "index" refer to; every device holds a
      copy.
  """

  def __init__(self, mesh: Mesh, resident: ArraySource | None = None):
    self.mesh, self._sharding = mesh, batch_sharding(mesh)
    if resident is not None:
      self._examples = [device_put(x, replicated(mesh)) for x in (resident.images, resident.labels)]
      self._look_up = jax.jit(_look_up, out_shardings=self._sharding)

  def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Turns this process's share of a batch into global arrays."""
    arrays = {
      name: jax.make_array_from_process_local_data(self._sharding, rows)
      for name, rows in batch.items()
    }
    return self._look_up(*self._examples, arrays) if "index" in arrays else arrays


def cached(batches: Batches, mesh: Mesh, cache: str) -> tuple[Batches, ShardBatch]:
  """The batches with their images cached, and the `ShardBatch` that puts them on the mesh.

  Args:
    batches: batches of a split.
    mesh: devices to shard over.
    cache: "none"; "host" decodes all images once into memory; "device" also copies
      them to every device, if they fit.

  Raises:
    UserError: if too many examples are corrupt, or one has the wrong size.
    ValueError: if the cache is unknown.
  """
  check_name("cache", cache, CACHES)
  source, preprocess, corrupt_examples = (
    batches.source,
    batches.preprocess,
    batches.corrupt_examples,
  )
  *_, corrupt = read(source, preprocess, [0], [None])  # fail early, before decoding all others
  corrupt_examples.note(corrupt)
  if cache == "none":
    return batches, ShardBatch(mesh)
  _log.info("decoding %d images into memory", len(source))
  resident = in_memory(source, preprocess, corrupt_examples)
  on_device = cache == "device" and fits(mesh, resident)
  batches = dataclasses.replace(batches, source=resident, index_only=on_device)
  return batches, ShardBatch(mesh, resident if on_device else None)


def fits(mesh: Mesh, source: ArraySource) -> bool:
  """Whether a copy of the images takes less than a quarter of each device's memory."""
  for device in mesh.local_devices:
    limit = (device.memory_stats() or {}).get("bytes_limit")  # None on CPU
    if limit is not None and source.images.nbytes > limit / 4:
      _log.warning(
        "%.1f GiB of images exceed a quarter of the memory of %s: they stay on the host",
        source.images.nbytes / 2**30,
        device,
      )
      return False
  return True


def _look_up(images: jax.Array, labels: jax.Array, batch: dict[str, jax.Array]):
  index = batch["index"]
  return {"image": images[index], "label": labels[index], "mask": batch["mask"]}
