"""Conversion between our variables and a PyTorch state_dict: names and axis orders differ.

There are two layouts of names: timm's ("stem.0.weight", "blocks.0.0.fn.0.weight", ...,
"head.bias"), and that of the authors' `nn.Sequential`, which numbers the stem, the blocks and the
head.
"""

from collections.abc import Iterable, Mapping
import logging
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from convmixer_jax.errors import UserError
from convmixer_jax.model import variables as variables_lib
from convmixer_jax.model.convmixer import ConvMixer

LAYOUTS = ("timm", "sequential")
# Keys under which training checkpoints store weights, in timm's order of preference (see its
# `load_state_dict`), and prefixes that wrappers of a model add to its names.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")
_PREFIX = re.compile(r"(module\.|_orig_mod\.)*")
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
_COUNTER = "num_batches_tracked"  # in PyTorch's BatchNorm, unused with its default momentum
# Axis orders by rank: vectors; [out, in] in PyTorch, [in, out] here; OIHW in PyTorch, HWIO here.
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
_EXACT_IN_FLOAT32 = ("float32", "float16", ml_dtypes.bfloat16)

_log = logging.getLogger(__name__)


def unwrap(checkpoint: Any) -> dict[str, np.ndarray]:
  """Extracts the weights by name from a checkpoint, preferring averaged (EMA) ones.

  Raises:
    UserError: if there are none.
  """
  if not isinstance(checkpoint, Mapping):
    raise UserError(f"it is not a dictionary of weights, but a {type(checkpoint).__name__}")
  for key in _WRAPPERS:
    if isinstance(checkpoint.get(key), Mapping):
      others = ", ".join(str(other) for other in checkpoint if other != key)
      _log.info("using the weights in %r; ignoring: %s", key, others or "nothing")
      checkpoint = checkpoint[key]
      break
  for key, value in checkpoint.items():
    if not (isinstance(key, str) and isinstance(value, np.ndarray)):
      raise UserError(f"it is not a dictionary of weights: {key!r} is a {type(value).__name__}")
  arrays = {_PREFIX.sub("", key, count=1): value for key, value in checkpoint.items()}
  if len(arrays) < len(checkpoint):
    raise UserError("some names occur twice, with and without a prefix such as 'module.'")
  return arrays


def to_variables(
  arrays: Mapping[str, np.ndarray], **attributes: Any
) -> tuple[ConvMixer, dict[str, Any]]:
  """The model inferred from the shapes of the arrays, and its variables in float32.

  Args:
    arrays: by name, in either layout; float32, float16 or bfloat16.
    **attributes: attributes of `ConvMixer` that shapes do not determine, such as `activation`.

  Raises:
    UserError: naming the arrays that are missing, unexpected, or of the wrong shape or dtype.
  """
  layout = _layout_of(arrays)
  sizes, in_chans = _sizes(arrays, layout)
  model = ConvMixer(**sizes, **attributes)
  modules = _modules(layout, model.depth)
  wanted = {_key(path, modules): path for path in _shapes(model, in_chans)}
  counters = {f"{modules[name]}.{_COUNTER}" for name in modules if name.endswith("norm")}
  _check_names(
    missing=wanted.keys() - arrays.keys(), extra=arrays.keys() - wanted.keys() - counters
  )
  variables = {}
  for path, like in _shapes(model, in_chans).items():
    key = _key(path, modules)
    shape = tuple(like.shape[axis] for axis in _TO_TORCH[like.ndim])
    if arrays[key].shape != shape:
      raise UserError(
        f"{key} has shape {arrays[key].shape}, expected {shape}; the other arrays imply {sizes}"
      )
    array = _as_float32(key, arrays[key]).transpose(_FROM_TORCH[like.ndim])
    variables[path] = jnp.array(array)
  others = sorted({str(arrays[key].dtype) for key in wanted} - {"float32"})
  if others:
    _log.info("%s was converted to float32", " and ".join(others))
  return model, traverse_util.unflatten_dict(variables, sep="/")


def from_variables(
  model: ConvMixer, variables: Mapping[str, Any], layout: str
) -> dict[str, np.ndarray]:
  """The state_dict in a layout: float32, with BatchNorm's counters 0 as int64.

  Raises:
    UserError: if the variables do not match the model.
    ValueError: if the layout is unknown.
  """
  if layout not in LAYOUTS:
    raise ValueError(f"layout is {layout!r}; allowed: {', '.join(LAYOUTS)}")
  modules = _modules(layout, model.depth)
  found = traverse_util.flatten_dict(
    {name: variables.get(name, {}) for name in ("params", "batch_stats")}, sep="/"
  )
  stem = found.get("params/stem/kernel")
  shapes = _shapes(model, 3 if stem is None else stem.shape[-2])
  _check_names(missing=shapes.keys() - found.keys(), extra=found.keys() - shapes.keys())
  arrays: dict[str, np.ndarray] = {}
  for path, like in shapes.items():
    if found[path].shape != like.shape:
      raise UserError(f"{path} has shape {found[path].shape}, the model expects {like.shape}")
    array = _as_float32(path, np.asarray(found[path]))
    arrays[_key(path, modules)] = np.ascontiguousarray(array.transpose(_TO_TORCH[like.ndim]))
  for name, module in modules.items():
    if name.endswith("norm"):
      arrays[f"{module}.{_COUNTER}"] = np.zeros((), np.int64)
  return arrays


def _layout_of(arrays: Iterable[str]) -> str:
  if any(key.startswith(("stem.", "blocks.")) for key in arrays):
    return "timm"
  if any(key[:1].isdecimal() for key in arrays):
    return "sequential"
  raise UserError(f"it is not a ConvMixer; its names are {_listed(arrays)}")


def _modules(layout: str, depth: int) -> dict[str, str]:
  """Maps our module names to PyTorch's."""
  timm = layout == "timm"
  stem = "stem." if timm else ""
  modules = {"stem": f"{stem}0", "stem_norm": f"{stem}2"}
  for i in range(depth):
    block = f"blocks.{i}" if timm else f"{3 + i}"  # after the stem's convolution, activation, norm
    modules[f"blocks_{i}/depthwise"] = f"{block}.0.fn.0"
    modules[f"blocks_{i}/depthwise_norm"] = f"{block}.0.fn.2"
    modules[f"blocks_{i}/pointwise"] = f"{block}.1"
    modules[f"blocks_{i}/pointwise_norm"] = f"{block}.3"
  return {**modules, "head": "head" if timm else f"{depth + 5}"}  # after pooling and flattening


def _sizes(arrays: Mapping[str, np.ndarray], layout: str) -> tuple[dict[str, Any], int]:
  """The sizes of the model, and its number of input channels."""
  block = re.compile(r"(blocks\.)?\d+\.0\.fn\.0\.weight")
  depth = sum(block.fullmatch(key) is not None for key in arrays)
  modules = _modules(layout, max(depth, 1))
  shapes = {}
  for name, axes in (("stem", 4), ("blocks_0/depthwise", 4), ("head", 2)):
    key = f"{modules[name]}.weight"
    if name == "head" and key not in arrays:
      continue
    if key not in arrays:
      raise UserError(f"{key} of a ConvMixer is missing; the names are {_listed(arrays)}")
    shapes[name] = arrays[key].shape
    if len(shapes[name]) != axes or 0 in shapes[name]:
      raise UserError(f"{key} has shape {shapes[name]}, expected {axes} non-empty axes")
  if "head" not in shapes:
    _log.info("there is no %s: the model returns pooled features", modules["head"])
  dim, in_chans, _, patch_size = shapes["stem"]
  sizes = {
    "dim": dim,
    "depth": depth,
    "kernel_size": shapes["blocks_0/depthwise"][-1],
    "patch_size": patch_size,
    "num_classes": shapes.get("head", (0,))[0],
  }
  return sizes, in_chans


def _shapes(model: ConvMixer, in_chans: int) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of the model's variables, by path."""
  return traverse_util.flatten_dict(variables_lib.shapes(model, in_chans), sep="/")


def _key(path: str, modules: Mapping[str, str]) -> str:
  """The name of a variable in PyTorch."""
  _, _, rest = path.partition("/")
  module, _, leaf = rest.rpartition("/")
  return f"{modules[module]}.{_LEAVES[leaf]}"


def _as_float32(key: str, array: np.ndarray) -> np.ndarray:
  if array.dtype not in _EXACT_IN_FLOAT32:
    raise UserError(f"{key} is {array.dtype}; allowed: float32, float16, bfloat16")
  return array.astype(np.float32, copy=False)


def _check_names(missing: Iterable[str], extra: Iterable[str]) -> None:
  both = (("missing", sorted(missing)), ("unexpected", sorted(extra)))
  found = [f"{what}: {_listed(names)}" for what, names in both if names]
  if found:
    raise UserError("; ".join(found))


def _listed(names: Iterable[str], limit: int = 4) -> str:
  found = list(names)
  more = f" and {len(found) - limit} more" if len(found) > limit else ""
  return (", ".join(found[:limit]) or "none") + more
