"""Models by name, with random or released weights."""

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
  """Returns a named model and its float32 variables, {"params", "batch_stats"}.

  Args:
    name: one of `list_models()`.
    num_classes: size of the logits; 0 for no head, None for the named model's default. If it
      differs from that of the released weights, a new random head replaces theirs; this is logged.
    pretrained: load the released weights, see `pretrained.load`; otherwise initialize at random.
    in_chans: image channels.
    seed: for random initialization.
    **overrides: other attributes of `ConvMixer`, such as `dtype` or `dropout`.

  Raises:
    UserError: if there is no such model, it has no released weights, they do not match `in_chans`
      or an override, or they cannot be fetched.
    ValueError: if `ConvMixer` does not allow an override's value.
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
        f"{key}={value!r} does not match the released weights of {name}, which have "
        f"{key}={fixed[key]!r}: drop {key} or pretrained=True"
      )
  from convmixer_jax import pretrained as pretrained_lib  # lazy: it imports more than JAX

  model, variables = pretrained_lib.load(name)
  if num_classes is not None:
    model, variables = replace_head(model, variables, num_classes, seed)
  return model.clone(**overrides), variables


def replace_head(
  model: ConvMixer, variables: Any, num_classes: int, seed: int = 0
) -> tuple[ConvMixer, dict[str, Any]]:
  """Returns the model and variables with `num_classes` classes.

  If the number of classes changes, the head is initialized at random.

  Args:
    model: any ConvMixer.
    variables: its {"params", "batch_stats"}; not modified.
    num_classes: 0 for no head.
    seed: for the new head.
  """
  if num_classes == model.num_classes:
    return model, variables
  params = {name: value for name, value in variables["params"].items() if name != "head"}
  changed = model.clone(num_classes=num_classes)
  if num_classes:
    fresh = variables_lib.fresh(changed.clone(depth=0), 3, seed)
    params["head"] = fresh["params"]["head"]
  _log.info(
    "dropped the head for %d classes; %s",
    model.num_classes,
    f"the new one, for {num_classes}, is random" if num_classes else "the model has no head",
  )
  return changed, {**variables, "params": params}
