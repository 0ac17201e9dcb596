"""Validation of a ConvMixer's attributes."""

from collections.abc import Callable
import math
import numbers
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from convmixer_jax.depthwise import IMPLEMENTATIONS
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.layers import DTYPES, INITIALIZERS
from convmixer_jax.model.scan import REMATS


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any, low: int) -> bool:
  return _is_number(value) and isinstance(value, numbers.Integral) and int(value) >= low


def _is_dtype(value: Any) -> bool:
  return value is None or any(value == jnp.dtype(name) for name in DTYPES)


# Attributes, a check of their values, and a description of the allowed ones.
_ALLOWED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
  ("dim patch_size kernel_size", lambda v: _is_integer(v, 1), "integers from 1"),
  ("depth num_classes", lambda v: _is_integer(v, 0), "integers from 0"),
  ("group_size", lambda v: v is None or _is_integer(v, 1), "None, integers from 1"),
  ("dropout norm_momentum", lambda v: _is_number(v) and 0 <= v < 1, "numbers from 0 to below 1"),
  ("norm_epsilon", lambda v: _is_number(v) and 0 < v < math.inf, "numbers above 0"),
  ("dtype", _is_dtype, f"None, {', '.join(DTYPES)}"),
  ("activation", lambda v: v in ACTIVATIONS, ", ".join(ACTIVATIONS)),
  ("initializer", lambda v: v in INITIALIZERS, ", ".join(INITIALIZERS)),
  ("remat", lambda v: v in REMATS, ", ".join(REMATS)),
  ("depthwise", lambda v: v in IMPLEMENTATIONS, ", ".join(map(str, IMPLEMENTATIONS))),
)


def check(model: nn.Module) -> None:
  """Validates all attributes of a `ConvMixer`.

  Raises:
    ValueError: names the attribute, its value and the allowed values.
  """
  for names, is_allowed, allowed in _ALLOWED:
    for name in names.split():
      value = getattr(model, name)
      if not is_allowed(value):
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
