"""The named models: their sizes, and lookup by name or file name."""

import difflib
from typing import Any

from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.model.variables import SIZES

# The released models, under timm's names: dim, depth, kernel size, patch size and activation
# (timm's `convmixer.py`; 768/32 was trained with ReLU, see the authors' README).
_RELEASED = {
  "convmixer_1536_20": (1536, 20, 9, 7, "gelu"),
  "convmixer_768_32": (768, 32, 7, 7, "relu"),
  "convmixer_1024_20_ks9_p14": (1024, 20, 9, 14, "gelu"),
}
# The paper's other ImageNet models, and the CIFAR-10 models of the paper, the authors' script and
# the replications: dim, depth, kernel size and patch size, all with GELU.
_IMAGENET = (
  (512, 12, 8, 7),
  (512, 16, 8, 7),
  (1024, 12, 8, 7),
  (1024, 16, 9, 7),
  (1536, 20, 3, 7),
  (1536, 20, 9, 14),
  (1536, 24, 9, 14),
)
_CIFAR10 = (
  (128, 4, 8, 1),
  (128, 8, 7, 2),
  (128, 8, 8, 1),
  (128, 12, 8, 1),
  (256, 4, 8, 1),
  (256, 8, 5, 2),
  (256, 8, 7, 2),
  (256, 8, 8, 1),
  (256, 8, 9, 1),
  (256, 12, 8, 1),
  (256, 16, 8, 1),
)


def settings_of_models() -> dict[str, dict[str, Any]]:
  """The `ConvMixer` arguments of each model by name: sizes, classes and activation.

  Released models have timm's names. The others are named `convmixer_DIM_DEPTH_ksKERNEL_pPATCH`
  (1000 classes), with the suffix `_cifar10` for CIFAR-10 (10 classes).
  """
  models = {name: _settings(*sizes, num_classes=1000) for name, sizes in _RELEASED.items()}
  for suffix, num_classes, group in (("", 1000, _IMAGENET), ("_cifar10", 10, _CIFAR10)):
    for dim, depth, kernel, patch in group:
      name = f"convmixer_{dim}_{depth}_ks{kernel}_p{patch}{suffix}"
      models[name] = _settings(dim, depth, kernel, patch, "gelu", num_classes=num_classes)
  return models


def _settings(
  dim: int, depth: int, kernel: int, patch: int, activation: str, *, num_classes: int
) -> dict[str, Any]:
  sizes = zip(SIZES, (dim, depth, kernel, patch), strict=True)
  return {**dict(sizes), "num_classes": num_classes, "activation": activation}


def list_models() -> list[str]:
  """The names of all models, the released ones first."""
  return list(settings_of_models())


def list_released() -> list[str]:
  """The names of the models with weights trained by the authors."""
  return list(_RELEASED)


def settings_of(name: str) -> dict[str, Any]:
  """The settings of one model.

  Raises:
    UserError: if there is no such model; suggests similar names.
  """
  models = settings_of_models()
  if name not in models:
    raise UserError(f"{name!r} is not a model; {nearest(name)}")
  return models[name]


def nearest(name: str) -> str:
  """The end of an error message: similar names, or all of them."""
  found = difflib.get_close_matches(name.lower(), list_models(), n=3)
  return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(list_models())}"


def named_in(file_name: str, model: ConvMixer) -> str | None:
  """The name of the model that a file name contains, if the weights match its sizes.

  Args:
    file_name: such as "convmixer_768_32_ks7_p7_relu.pth.tar".
    model: the model that the weights belong to.
  """
  for name, settings in settings_of_models().items():
    if name in file_name and all(settings[key] == getattr(model, key) for key in SIZES):
      return name
  return None
