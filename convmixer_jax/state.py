"""All that a training run carries from step to step, and its making."""

import logging
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict
import optax

from convmixer_jax import mesh as mesh_lib
from convmixer_jax.depthwise import default_implementation
from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer, default_layout

_log = logging.getLogger(__name__)


class TrainState(flax.struct.PyTreeNode):
  """A pytree: finished steps, variables, optimiser state and the root of all randomness.

  `ema` holds the exponential moving averages of both variables, if they are kept.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  key: jax.Array
  ema: Any = None

  def variables(self) -> dict[str, Any]:
    """What the model is applied with."""
    return {"params": self.params, "batch_stats": self.batch_stats}


def make_model(config: config_dict.ConfigDict, mesh: Mesh) -> ConvMixer:
  """The ConvMixer of `config.model`, in the layout that is fastest on the mesh's devices.

  Raises:
    UserError: if `config.model.depthwise` is "native" and the devices are not CPUs.
  """
  platform = mesh.devices.flat[0].platform
  depthwise = config.model.depthwise or default_implementation(platform)
  if depthwise == "native" and platform != "cpu":
    raise UserError(
      f'config.model.depthwise is "native", which is for CPUs, and this machine computes on '
      f"{platform}: leave it unset"
    )
  layout = default_layout(platform, depthwise)
  _log.info("on %s: maps lie as %s, depthwise convolution by %s", platform, layout, depthwise)
  settings = {**config.model, "dtype": jnp.dtype(config.model.dtype)}
  return ConvMixer(
    **settings,
    layout=layout,
    group_size=config.data.group_size,
    remat=config.parallel.remat,
    scan=config.parallel.scan,
    mesh=mesh if mesh.size > 1 else None,
  )


def create_state(
  model: ConvMixer,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  seed: int,
  image_shape: tuple[int, int, int],
  with_ema: bool = False,
) -> TrainState:
  """A fresh state, made on the mesh, where `mesh.cut` says.

  Args:
    model: whose variables are initialised.
    optimizer: whose state is.
    mesh: where.
    seed: of the initialisation and of all later randomness.
    image_shape: (height, width, channels).
    with_ema: whether averages of the variables are kept.
  """

  def create() -> TrainState:
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, jnp.zeros((1, *image_shape)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    step, ema = jnp.zeros((), jnp.int32), variables if with_ema else None
    return TrainState(step, params, batch_stats, optimizer.init(params), key, ema)

  return jax.jit(create, out_shardings=mesh_lib.cut(mesh, jax.eval_shape(create)))()
