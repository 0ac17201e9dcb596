"""The state of a training run, and its initialization."""

import logging
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.parallel import sharding

_log = logging.getLogger(__name__)


class TrainState(flax.struct.PyTreeNode):
  """A pytree of the step count, the variables, the optimiser state and the random key.

  `ema` has exponential moving averages of parameters and running statistics, or None.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  key: jax.Array
  ema: Any = None

  def variables(self) -> dict[str, Any]:
    """The variables to apply the model with."""
    return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
  model: ConvMixer,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  seed: int,
  image_shape: tuple[int, int, int],
  with_ema: bool = False,
) -> TrainState:
  """Creates a fresh state on the mesh, with the shardings of `sharding.state_sharding`.

  Args:
    model: the model to initialize.
    optimizer: the optimiser to initialize.
    mesh: devices to shard over.
    seed: of the initialization and of all later randomness.
    image_shape: (height, width, channels).
    with_ema: whether to keep averages of the variables.
  """

  def create() -> TrainState:
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, jnp.zeros((1, *image_shape)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    step, ema = jnp.zeros((), jnp.int32), variables if with_ema else None
    return TrainState(step, params, batch_stats, optimizer.init(params), key, ema)

  return jax.jit(create, out_shardings=sharding.state_sharding(mesh, jax.eval_shape(create)))()
