"""Runs a function of one image on each image of a batch, in the way that suits the platform."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def each(function: Callable[..., Any], mesh: Mesh | None, *arrays: Any) -> Any:
  """The results of `function` for all images, stacked.

  On GPUs all images at once, and all branches of the function's switches: a GPU needs many pixels,
  and waits at each branch. On CPUs and TPUs one image after the other on each device: an image pays
  only for its own branches, and a TPU keeps it in its vector memory, where look-ups are cheap.

  Args:
    function: of one image and its arguments; its result has the shape of an image.
    mesh: devices that the first axis of the arrays is sharded over; None for one device. With more
      devices and None, each would compute the whole batch.
    arrays: arrays or trees of them, whose first axis counts the images.
  """

  def run(*arrays: Any) -> Any:
    at_once, in_turn = all_at_once(function), one_by_one(function)
    return jax.lax.platform_dependent(*arrays, cuda=at_once, rocm=at_once, default=in_turn)

  if mesh is None:
    return run(*arrays)
  batch = PartitionSpec(mesh.axis_names)
  return jax.shard_map(run, mesh=mesh, in_specs=batch, out_specs=batch)(*arrays)


def all_at_once(function: Callable[..., Any]) -> Callable[..., Any]:
  """For GPUs; see `each`."""
  return jax.vmap(function)


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
  """For CPUs and TPUs; see `each`."""
  return lambda *arrays: jax.lax.map(lambda of_image: function(*of_image), arrays)
