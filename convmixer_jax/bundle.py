"""A model as a directory: `model.json` says which ConvMixer it is, `arrays/` has its weights.

The weights are an Orbax checkpoint of {"params", "batch_stats"}, which other programs that use
Orbax can restore too.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_utils, checkpointers

from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer

# The attributes that decide what the model computes; the others are about training or speed.
_ATTRIBUTES = (
  "dim",
  "depth",
  "kernel_size",
  "patch_size",
  "num_classes",
  "activation",
  "norm_epsilon",
)


def is_bundle(path: pathlib.Path) -> bool:
  """Whether `path` is a directory that `save` wrote."""
  return (path / "model.json").is_file()


def save(path: pathlib.Path, model: ConvMixer, variables: Any) -> None:
  """Writes the directory `path`, which must not exist.

  Raises:
    UserError: if it does.
  """
  if path.exists():
    raise UserError(f"{path} exists already")
  tree = {name: variables[name] for name in ("params", "batch_stats")}
  path.mkdir(parents=True)
  with checkpointers.PyTreeCheckpointer() as checkpointer:
    checkpointer.save((path / "arrays").absolute(), jax.tree.map(jnp.asarray, tree))
  attributes = {name: getattr(model, name) for name in _ATTRIBUTES}
  attributes["in_chans"] = int(tree["params"]["stem"]["kernel"].shape[2])
  (path / "model.json").write_text(json.dumps(attributes, indent=2) + "\n")


def load(path: pathlib.Path) -> tuple[ConvMixer, dict[str, Any]]:
  """The model and its float32 variables, on the default device.

  Raises:
    UserError: if a part is missing or damaged.
  """
  try:
    attributes = json.loads((path / "model.json").read_text())
    channels = attributes.pop("in_chans")
    model = ConvMixer(**attributes)
    image = jax.ShapeDtypeStruct((1, model.patch_size, model.patch_size, channels), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), image)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    restore = ocp_args.PyTreeRestore(like, checkpoint_utils.construct_restore_args(like))
    with checkpointers.PyTreeCheckpointer() as checkpointer:
      # Looked at first: a read that fails midway leaves Orbax's other reads lying about.
      there = checkpointer.metadata((path / "arrays").absolute()).item_metadata.tree
      if _shapes(there) != _shapes(like):
        raise ValueError("the arrays are not those of the model in model.json")
      return model, checkpointer.restore((path / "arrays").absolute(), args=restore)
  except Exception as error:  # whatever the many readers below Orbax raise
    reason = str(error).partition("\n")[0]
    raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: tuple(x.shape), tree)
