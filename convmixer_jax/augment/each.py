"""Runs a function of one image on each image of a batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def each(function: Callable[..., Any], mesh: Mesh | None, *arrays: Any) -> Any:
  """`jax.vmap(function)(*arrays)`, in the way that suits the platform.

  Args:
    function: of one image and its arguments.
    mesh: devices that the first axis of the arrays is sharded over; None for one device.
    arrays: arrays, or trees of them, whose first axis counts the images.
  """

  def run(*arrays: Any) -> Any:
    return jax.lax.platform_dependent(
      *arrays, cuda=jax.vmap(function), rocm=jax.vmap(function), default=loop(function)
    )

  if mesh is None:
    return run(*arrays)
  spec = PartitionSpec(mesh.axis_names)
  return jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)(*arrays)


def loop(function: Callable[..., Any]) -> Callable[..., Any]:
  """Like `jax.vmap`, but one image after the other: each pays only for its branch of a switch."""
  return lambda *arrays: jax.lax.map(lambda of_image: function(*of_image), arrays)
