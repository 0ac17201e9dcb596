"""RandAugment policies, in the notation of timm and torchvision."""

from collections.abc import Callable
import dataclasses
import re

from jax import Array
import jax.numpy as jnp

from convmixer_jax.augment.op import Interpolation, Op
from convmixer_jax.augment.rounding import product
from convmixer_jax.errors import UserError

_BINS = 31  # torchvision's magnitudes are 0..30


@dataclasses.dataclass(frozen=True)
class Policy:
  """A RandAugment policy: draws `layers` ops uniformly with replacement.

  Attributes:
    ops: the ops to draw from.
    layers: number of ops per image.
    probability: of applying a drawn op.
    magnitude: mean magnitude.
    magnitude_std: std of the normal noise on the magnitude; infinite for a uniform draw from 0 to
      `magnitude`.
    magnitude_max: upper limit of the noisy magnitude; the lower limit is 0.
    interpolations: drawn uniformly, for geometric ops.
    fills_with_mean: geometric ops fill with the dataset's mean, otherwise with 0.
    argument: function (op, magnitude, sign, height, width) -> argument of each op. All are float32
      or int32 arrays of the same shape; `sign` is -1 or 1.
  """

  ops: tuple[Op, ...]
  layers: int
  probability: float
  magnitude: float
  magnitude_std: float
  magnitude_max: float
  interpolations: tuple[Interpolation, ...]
  fills_with_mean: bool
  argument: Callable[[Array, Array, Array, int, int], Array]


def parse(text: str) -> Policy:
  """Parses a policy string: a family, then sections in any order, separated by dashes.

  `rand-m9-mstd0.5-inc1` is timm's notation (timm/data/auto_augment.py). Sections and defaults: m,
  magnitude (10); n, layers (2); mstd, noise (0; above 100 for a uniform draw); mmax, maximum
  magnitude (10); p, probability of each op (0.5); inc, ops get stronger with the magnitude (off).
  As in timm any number after inc turns it on, even 0. Weights (w) are not supported.

  `torchvision-n2-m9` is torchvision's RandAugment since 0.11, with 31 magnitudes and nearest-
  neighbour interpolation: n (2) and m (9).

  Raises:
    UserError: says what is wrong with the string and what is allowed.
  """
  family, *sections = text.split("-")
  if family not in _FAMILIES:
    raise UserError(f"policy {text!r} must begin with one of {sorted(_FAMILIES)}, not {family!r}")
  make, allowed = _FAMILIES[family]
  values: dict[str, float] = {}
  for section in sections:
    name = section.rstrip("0123456789.")
    number = section[len(name) :]
    if name not in allowed:
      reason = "sets weights, which are not supported" if name == "w" else "is unknown"
      raise UserError(
        f"policy {text!r}: section {section!r} {reason}; the sections of {family!r} are "
        f"{', '.join(allowed)}, each with a number"
      )
    pattern, valid, meaning = allowed[name]
    if not re.fullmatch(pattern, number) or not valid(float(number)):
      raise UserError(f"policy {text!r}: {name} must be {meaning}, got {number!r}")
    if name in values:
      raise UserError(f"policy {text!r}: {name} occurs twice")
    values[name] = float(number)
  return make(**values)


def _timm(
  m: float = 10,
  n: float = 2,
  mstd: float = 0,
  mmax: float = 10,
  p: float = 0.5,
  inc: float | None = None,
) -> Policy:
  return Policy(
    ops=_TIMM_OPS,
    layers=int(n),
    probability=p,
    magnitude=m,
    magnitude_std=float("inf") if mstd > 100 else mstd,
    magnitude_max=mmax,
    interpolations=(Interpolation.BILINEAR, Interpolation.BICUBIC),
    fills_with_mean=True,
    argument=_timm_argument if inc is None else _timm_increasing_argument,
  )


def _torchvision(m: float = 9, n: float = 2) -> Policy:
  return Policy(
    ops=_TORCHVISION_OPS,
    layers=int(n),
    probability=1.0,
    magnitude=m,
    magnitude_std=0.0,
    magnitude_max=_BINS - 1,
    interpolations=(Interpolation.NEAREST,),
    fills_with_mean=False,
    argument=_torchvision_argument,
  )


_TIMM_OPS = (
  Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT, Op.ROTATE, Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD,
  Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X,
  Op.TRANSLATE_Y,
)  # fmt: skip

_TORCHVISION_OPS = (
  Op.IDENTITY, Op.CENTRED_SHEAR_X, Op.CENTRED_SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE,
  Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS, Op.POSTERIZE, Op.SOLARIZE, Op.AUTO_CONTRAST,
  Op.EQUALIZE,
)  # fmt: skip

# Family -> its constructor and, for each section, pattern, further check and description.
_WHOLE, _DECIMAL = r"\d+", r"\d+(\.\d*)?"
_FAMILIES = {
  "rand": (
    _timm,
    {
      "m": (_WHOLE, lambda v: True, "a whole number"),
      "n": (_WHOLE, lambda v: v >= 1, "a whole number from 1"),
      "mstd": (_DECIMAL, lambda v: True, "a number from 0"),
      "mmax": (_WHOLE, lambda v: v >= 1, "a whole number from 1"),
      "p": (_DECIMAL, lambda v: v <= 1, "a number from 0 to 1"),
      "inc": (_WHOLE, lambda v: True, "a whole number (any number, even 0, means yes)"),
    },
  ),
  "torchvision": (
    _torchvision,
    {
      "m": (_WHOLE, lambda v: v < _BINS, f"a whole number from 0 to {_BINS - 1}"),
      "n": (_WHOLE, lambda v: v >= 1, "a whole number from 1"),
    },
  ),
}


def _of_op(op: Array, arguments: dict[tuple[Op, ...], Array]) -> Array:
  """The argument of each op; 0 for ops without one."""
  result = jnp.zeros(op.shape, jnp.float32)
  for ops, argument in arguments.items():
    for one in ops:
      result = jnp.where(op == one, argument, result)
  return result


_ENHANCE = (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)
_SHEAR = (Op.SHEAR_X, Op.SHEAR_Y)
_CENTRED_SHEAR = (Op.CENTRED_SHEAR_X, Op.CENTRED_SHEAR_Y)


def _timm_argument(op: Array, magnitude: Array, sign: Array, height: int, width: int) -> Array:
  return _of_op(
    op,
    {
      (Op.ROTATE,): sign * 3 * magnitude,
      (Op.POSTERIZE,): jnp.floor(0.4 * magnitude),
      (Op.SOLARIZE,): jnp.floor(25.6 * magnitude),
      (Op.SOLARIZE_ADD,): jnp.floor(11 * magnitude),
      _ENHANCE: 0.1 + product(magnitude, jnp.float32(0.18)),
      _SHEAR: sign * 0.03 * magnitude,
      (Op.TRANSLATE_X,): sign * (0.045 * width) * magnitude,
      (Op.TRANSLATE_Y,): sign * (0.045 * height) * magnitude,
    },
  )


def _timm_increasing_argument(
  op: Array, magnitude: Array, sign: Array, height: int, width: int
) -> Array:
  argument = _timm_argument(op, magnitude, sign, height, width)
  factor = 1 + product(sign * magnitude, jnp.float32(0.09))
  argument = jnp.where(op == Op.POSTERIZE, jnp.maximum(4 - argument, 0), argument)
  argument = jnp.where(op == Op.SOLARIZE, 256 - argument, argument)
  return jnp.where(jnp.isin(op, jnp.array(_ENHANCE)), jnp.maximum(factor, 0.1), argument)


def _torchvision_argument(
  op: Array, magnitude: Array, sign: Array, height: int, width: int
) -> Array:
  part = magnitude / (_BINS - 1)
  return _of_op(
    op,
    {
      _CENTRED_SHEAR: sign * jnp.tan(0.3 * part),
      (Op.TRANSLATE_X,): -sign * jnp.floor((150 / 331 * width) * part),
      (Op.TRANSLATE_Y,): -sign * jnp.floor((150 / 331 * height) * part),
      (Op.ROTATE,): sign * magnitude,
      _ENHANCE: 1 + product(sign * part, jnp.float32(0.9)),
      (Op.POSTERIZE,): 8 - jnp.round(4 * part),
      (Op.SOLARIZE,): 255 - product(part, jnp.float32(255)),
    },
  )
