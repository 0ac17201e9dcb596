"""Models by name, with fresh or released weights."""

from typing import Any

import jax
import jax.numpy as jnp

from convmixer_jax.errors import UserError
from convmixer_jax.model import names
from convmixer_jax.model.convmixer import ConvMixer


def create_model(
  name: str,
  *,
  num_classes: int | None = None,
  pretrained: bool = False,
  in_chans: int = 3,
  seed: int = 0,
  **overrides: Any,
) -> tuple[ConvMixer, dict[str, Any]]:
  """A named model and its variables {"params", "batch_stats"} in float32.

  Args:
    name: one of `list_models()`.
    num_classes: size of the logits, 0 for none; None for the name's own. With released weights
      another number gets a fresh head, which the log says.
    pretrained: load the released weights, see `pretrained.load`; else all is drawn at random.
    in_chans: channels of the images.
    seed: of what is drawn at random.
    **overrides: other attributes of `ConvMixer`, such as `dtype` or `dropout`.

  Raises:
    UserError: if there is no such model, it has no released weights, these do not fit `in_chans`
      or an override, or they cannot be fetched.
    ValueError: if `ConvMixer` does not allow the value of an override.
    TypeError: if `ConvMixer` has no such attribute.
  """
  settings = names.settings_of(name)
  if num_classes is not None:
    overrides["num_classes"] = num_classes
  if not pretrained:
    model = ConvMixer(**{**settings, **overrides})
    return model, init_variables(model, in_chans, seed)
  fixed = {"in_chans": 3, **settings}
  del fixed["num_classes"]
  for key, value in {"in_chans": in_chans, **overrides}.items():
    if key in fixed and value != fixed[key]:
      raise UserError(
        f"{key}={value!r} does not fit the released weights of {name}, where it is {fixed[key]!r}: "
        "leave one of them out"
      )
  from convmixer_jax import pretrained as pretrained_lib  # only now: it brings more than JAX

  model, variables = pretrained_lib.load(name)
  if num_classes is not None:
    model, variables = pretrained_lib.replace_head(model, variables, num_classes, seed)
  return model.clone(**overrides), variables


def init_variables(model: ConvMixer, in_chans: int, seed: int) -> dict[str, Any]:
  """Fresh variables of a model, for images of so many channels."""
  image_bhwc = jnp.zeros((1, model.patch_size, model.patch_size, in_chans))
  return jax.jit(model.init)(jax.random.key(seed), image_bhwc)
