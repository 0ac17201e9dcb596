"""RandAugment on the device: random ops on each image of a batch (arXiv:1909.13719).

Drawing and applying are separate functions, so that each can be tested on its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from convmixer_jax.augment import geometric, photometric
from convmixer_jax.augment.each import each
from convmixer_jax.augment.op import Op
from convmixer_jax.augment.policy import Policy


class Draws(NamedTuple):
  """The random draws for each image (b) and layer (l).

  Attributes:
    op_bl: int32, numbers of `Op`.
    is_applied_bl: whether the op is applied.
    magnitude_bl: float32, with noise, clipped to its limits.
    sign_bl: float32, -1 or 1; for ops with a direction.
    interpolation_bl: int32, numbers of `Interpolation`; for geometric ops.
  """

  op_bl: Array
  is_applied_bl: Array
  magnitude_bl: Array
  sign_bl: Array
  interpolation_bl: Array


def rand_augment(
  key: Array, image_bhwc: Array, policy: Policy, fill: Sequence[int], mesh: Mesh | None = None
) -> Array:
  """Applies random ops, drawn from `policy`, to each image.

  The draws for an image depend only on the key and on its index in the batch, not on the other
  images or on the number of devices that the batch is sharded over.

  Args:
    key: random key of this batch.
    image_bhwc: uint8, with one or three channels.
    policy: see `policy.parse`.
    fill: one level per channel, for points that geometric ops map outside the image.
    mesh: see `each`.

  Returns:
    uint8 of the same shape.
  """
  return apply(image_bhwc, draw(key, len(image_bhwc), policy), policy, fill, mesh)


def draw(key: Array, batch: int, policy: Policy) -> Draws:
  """Draws for `batch` images."""
  shape = batch, policy.layers
  op_key, applied_key, magnitude_key, sign_key, interpolation_key = jax.random.split(key, 5)

  def one_of(key: Array, values: Sequence[int]) -> Array:
    return jnp.array(values, jnp.int32)[jax.random.randint(key, shape, 0, len(values))]

  if policy.magnitude_std == float("inf"):
    magnitude_bl = policy.magnitude * jax.random.uniform(magnitude_key, shape)
  else:
    noise_bl = policy.magnitude_std * jax.random.normal(magnitude_key, shape)
    magnitude_bl = policy.magnitude + noise_bl
  return Draws(
    op_bl=one_of(op_key, policy.ops),
    is_applied_bl=jax.random.bernoulli(applied_key, policy.probability, shape),
    magnitude_bl=jnp.clip(magnitude_bl, 0, policy.magnitude_max),
    sign_bl=jax.random.rademacher(sign_key, shape, jnp.float32),
    interpolation_bl=one_of(interpolation_key, policy.interpolations),
  )


def apply(
  image_bhwc: Array, draws: Draws, policy: Policy, fill: Sequence[int], mesh: Mesh | None = None
) -> Array:
  """Applies the layers in sequence; arguments are as in `rand_augment`."""
  _, h, w, _ = image_bhwc.shape
  argument_bl = policy.argument(draws.op_bl, draws.magnitude_bl, draws.sign_bl, h, w)
  op_bl = jnp.where(draws.is_applied_bl, draws.op_bl, Op.IDENTITY)
  transform_bl = geometric.transform_of(op_bl, argument_bl)

  def layers(image_hwc: Array, *drawn: Any) -> Array:
    return jax.lax.scan(layer, image_hwc, drawn)[0]

  def layer(image_hwc: Array, drawn: tuple[Any, ...]) -> tuple[Array, None]:
    op, argument, transform, interpolation = drawn
    image_hwc = photometric.apply(image_hwc, op, argument, policy.ops)
    return geometric.apply(
      image_hwc, op, transform, interpolation, fill, policy.interpolations
    ), None

  return each(layers, mesh, image_bhwc, op_bl, argument_bl, transform_bl, draws.interpolation_bl)
