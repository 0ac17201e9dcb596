"""Models by name, with fresh or released weights."""

import logging
from typing import Any

from convmixer_jax.errors import UserError
from convmixer_jax.model import names
from convmixer_jax.model import variables as variables_lib
from convmixer_jax.model.convmixer import ConvMixer

_log = logging.getLogger(__name__)


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
    return model, variables_lib.fresh(model, in_chans, seed)
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
    model, variables = replace_head(model, variables, num_classes, seed)
  return model.clone(**overrides), variables


def replace_head(
  model: ConvMixer, variables: Any, num_classes: int, seed: int = 0
) -> tuple[ConvMixer, dict[str, Any]]:
  """The same with so many classes; where that is another number, the head is drawn at random.

  Args:
    model: any.
    variables: its {"params", "batch_stats"}, which are not changed.
    num_classes: 0 for no head.
    seed: of the new head.
  """
  if num_classes == model.num_classes:
    return model, variables
  params = {name: value for name, value in variables["params"].items() if name != "head"}
  changed = model.clone(num_classes=num_classes)
  if num_classes:
    fresh = variables_lib.fresh(changed.clone(depth=0), 3, seed)
    params["head"] = fresh["params"]["head"]
  _log.info(
    "the head for %d classes was left out, %s",
    model.num_classes,
    f"that for {num_classes} is fresh" if num_classes else "there is no other",
  )
  return changed, {**variables, "params": params}
