"""A trained model: the module, its variables, what its images need, and its classes' names."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from convmixer_jax.data import class_names
from convmixer_jax.model.convmixer import ConvMixer

# timm's names of the one way in which this project shows images to a trained model.
_FIXED = {"interpolation": "bicubic", "crop_mode": "center"}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How an image is shown to a trained model, and what the model's answers are called.

  The image is resized, bicubic, so that its short side has image_size / crop_fraction pixels; its
  centre is cropped to a square of image_size; levels, as fractions of 255, are normalised.

  Attributes:
    image_size: side in pixels of what the model sees.
    mean, std: of each channel, as fractions of 255.
    crop_fraction: side of the crop over the resized short side.
    class_names: of the labels 0, 1, ...; None if they are not known.
  """

  image_size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  crop_fraction: float = 1.0
  class_names: tuple[str, ...] | None = None

  def to_dict(self, num_classes: int) -> dict[str, Any]:
    """The same as the JSON object that timm calls `pretrained_cfg`, of so many classes."""
    names = {} if self.class_names is None else {"label_names": list(self.class_names)}
    return {
      "input_size": [len(self.mean), self.image_size, self.image_size],
      "mean": list(self.mean),
      "std": list(self.std),
      "crop_pct": self.crop_fraction,
      **_FIXED,
      "num_classes": num_classes,
      **names,
    }

  @classmethod
  def from_dict(cls, found: Any, num_classes: int, channels: int) -> "Preprocessing":
    """From what `to_dict` gave, for a model of so many classes and channels.

    Raises:
      ValueError: naming what is missing, wrong or does not fit the model.
    """
    if not isinstance(found, Mapping):
      raise ValueError(f"it is {found!r}, not an object")
    try:
      depth, height, width = map(int, found["input_size"])
      mean, std = (tuple(map(float, found[key])) for key in ("mean", "std"))
      fraction, labels = float(found["crop_pct"]), found.get("label_names")
    except KeyError as error:
      raise ValueError(f"{error} is missing") from None
    except TypeError as error:
      raise ValueError(str(error)) from None
    names = None if labels is None else tuple(map(str, labels))
    checks = {
      "input_size": depth == channels and height == width > 0,
      "mean": len(mean) == channels and all(map(math.isfinite, mean)),
      "std": len(std) == channels and all(0 < x < math.inf for x in std),
      "crop_pct": 0 < fraction < math.inf,
      "num_classes": found.get("num_classes", num_classes) == num_classes,
      "label_names": names is None or len(names) == num_classes,
      **{key: found.get(key, value) == value for key, value in _FIXED.items()},
    }
    for key, is_right in checks.items():
      if not is_right:
        raise ValueError(
          f"{key} is {found[key]!r}, which does not fit {channels} channels, {num_classes} classes"
          f" and the one way to preprocess that there is: {_FIXED}"
        )
    return cls(height, mean, std, fraction, names)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A trained model, and what its source tells of it.

  Attributes:
    model: the module; its activation is "gelu" where none is told.
    variables: float32 {"params", "batch_stats"}.
    activation: as told; None if it is only assumed.
    preprocessing: as told; None if it is not.
  """

  model: ConvMixer
  variables: dict[str, Any]
  activation: str | None
  preprocessing: Preprocessing | None = None

  @property
  def channels(self) -> int:
    """Of the images."""
    return self.variables["params"]["stem"]["kernel"].shape[2]


def imagenet() -> Preprocessing:
  """Of the released models, which is timm's: 224 pixels, ImageNet-1k's classes."""
  names = tuple(class_names.imagenet().values())
  return Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.96, names)
