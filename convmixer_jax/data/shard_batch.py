"""Host batches on their way to the mesh, and images that are kept in memory or on it."""

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
  """Puts host batches on the mesh, and looks images up that lie there already.

  Args:
    mesh: where batches go, their first axis cut over its devices.
    resident: the examples that batches of "index" point to; each device holds
      a copy of them.
  """

  def __init__(self, mesh: Mesh, resident: ArraySource | None = None):
    self.mesh, self._sharding = mesh, batch_sharding(mesh)
    if resident is not None:
      self._examples = [device_put(x, replicated(mesh)) for x in (resident.images, resident.labels)]
      self._look_up = jax.jit(_look_up, out_shardings=self._sharding)

  def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's share of a batch -> global arrays."""
    arrays = {
      name: jax.make_array_from_process_local_data(self._sharding, rows)
      for name, rows in batch.items()
    }
    return self._look_up(*self._examples, arrays) if "index" in arrays else arrays


def cached(batches: Batches, mesh: Mesh, cache: str) -> tuple[Batches, ShardBatch]:
  """The batches with their images where `cache` says, and what puts them on the mesh.

  Args:
    batches: of a split.
    mesh: where.
    cache: "none"; "host": decoded once into memory; "device": copied from there to
      each device, if they fit.

  Raises:
    UserError: if too many examples are corrupt, or one has another size.
    ValueError: if there is no such cache.
  """
  check_name("cache", cache, CACHES)
  source, preprocess, corrupt_examples = (
    batches.source,
    batches.preprocess,
    batches.corrupt_examples,
  )
  *_, corrupt = read(source, preprocess, [0], [None])  # an error before all the others decode
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
        "%.1f GiB of images take over a quarter of the memory of %s: they stay on the host",
        source.images.nbytes / 2**30,
        device,
      )
      return False
  return True


def _look_up(images: jax.Array, labels: jax.Array, batch: dict[str, jax.Array]):
  index = batch["index"]
  return {"image": images[index], "label": labels[index], "mask": batch["mask"]}
