"""A trained model: the module, its variables, its preprocessing and its class names."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from convmixer_jax.data import class_names
from convmixer_jax.model.convmixer import ConvMixer

# The only preprocessing that this project supports for trained models, in timm's terms.
_FIXED = {"interpolation": "bicubic", "crop_mode": "center"}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How images are preprocessed for a trained model, and the names of its classes.

  The image is resized (bicubic) to a short side of image_size / crop_fraction pixels. The central
  square of image_size pixels is cropped, and its values, divided by 255, are normalised.

  Attributes:
    image_size: side of the model's input in pixels.
    mean, std: per channel, of values divided by 255.
    crop_fraction: side of the crop divided by the resized short side.
    class_names: names of the labels 0, 1, ...; None if unknown.
  """

  image_size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  crop_fraction: float = 1.0
  class_names: tuple[str, ...] | None = None

  def to_dict(self, num_classes: int) -> dict[str, Any]:
    """Converts to the JSON object that timm calls `pretrained_cfg`."""
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
    """Parses what `to_dict` returned, for a model with these classes and channels.

    Raises:
      ValueError: naming the entry that is missing, invalid or does not fit the model.
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
          f" and the only supported preprocessing, {_FIXED}"
        )
    return cls(height, mean, std, fraction, names)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A trained model, and what its source states about it.

  Attributes:
    model: the module; its activation is "gelu" if the source states none.
    variables: float32 {"params", "batch_stats"}.
    activation: as stated by the source; None if it is only assumed.
    preprocessing: as stated by the source; None if unknown.
  """

  model: ConvMixer
  variables: dict[str, Any]
  activation: str | None
  preprocessing: Preprocessing | None = None

  @property
  def channels(self) -> int:
    """The number of input channels."""
    return self.variables["params"]["stem"]["kernel"].shape[2]


def imagenet() -> Preprocessing:
  """The preprocessing of the released models, as in timm: 224 pixels, ImageNet-1k's classes."""
  names = tuple(class_names.imagenet().values())
  return Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.96, names)
