"""Colour jitter: brightness, contrast and saturation in random order."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from convmixer_jax.augment import photometric
from convmixer_jax.augment.each import each
from convmixer_jax.augment.op import Op

OPS = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR)


def color_jitter(
  key: jax.Array, image_bhwc: jax.Array, strength: float, mesh: Mesh | None = None
) -> jax.Array:
  """Applies each op with a random factor from [max(0, 1 - strength), 1 + strength], as torchvision.

  Args:
    key: random key of this step.
    image_bhwc: uint8; factors and their order are drawn per image.
    strength: at least 0.
    mesh: see `each`.
  """
  order_key, factor_key = jax.random.split(key)
  shape = (len(image_bhwc), len(OPS))
  op_b3 = jnp.array(OPS)[jax.random.uniform(order_key, shape).argsort(1)]
  low, high = max(0.0, 1 - strength), 1 + strength
  factor_b3 = jax.random.uniform(factor_key, shape, minval=low, maxval=high)

  def one_op(image_hwc: jax.Array, drawn: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
    op, factor = drawn
    return photometric.apply(image_hwc, op, factor, OPS), None

  def all_ops(image_hwc: jax.Array, *drawn: jax.Array) -> jax.Array:
    return jax.lax.scan(one_op, image_hwc, drawn)[0]

  return each(all_ops, mesh, image_bhwc, op_b3, factor_b3)
