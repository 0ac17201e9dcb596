"""Host batches on their way to the mesh."""

from collections.abc import Mapping
import logging

import jax
from jax.sharding import Mesh
import numpy as np

from convmixer_jax.data.datasets import ArraySource
from convmixer_jax.parallel.sharding import place, replicated, sharded

_log = logging.getLogger(__name__)


class Feed:
  """Puts host batches on the mesh, and looks images up that lie there already.

  Args:
    mesh: where batches go, their first axis cut over its devices.
    resident: the examples that batches of "index" point to; each device holds
      a copy of them.
  """

  def __init__(self, mesh: Mesh, resident: ArraySource | None = None):
    self._sharding = sharded(mesh)
    if resident is not None:
      self._examples = [place(x, replicated(mesh)) for x in (resident.images, resident.labels)]
      self._look_up = jax.jit(_look_up, out_shardings=self._sharding)

  def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's share of a batch -> global arrays."""
    arrays = {
      name: jax.make_array_from_process_local_data(self._sharding, rows)
      for name, rows in batch.items()
    }
    return self._look_up(*self._examples, arrays) if "index" in arrays else arrays


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
