"""Every setting of a run: its type, default, meaning and allowed values.

Keys that have only a type here must be set by the recipe. No other module declares keys.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
from typing import Any

from ml_collections import config_dict

from convmixer_jax.augment.erase import ERASE_MODES
from convmixer_jax.data.preprocess import CROPS, INTERPOLATIONS
from convmixer_jax.data.shard_batch import CACHES
from convmixer_jax.depthwise import IMPLEMENTATIONS
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.layers import DTYPES, INITIALIZERS
from convmixer_jax.model.scan import REMATS
from convmixer_jax.optim.loss import LOSSES
from convmixer_jax.optim.optimizer import DECAY_KINDS, DECAYS
from convmixer_jax.optim.schedules import SCHEDULES


@dataclasses.dataclass(frozen=True)
class Setting:
  """The default and the constraints of one key.

  Attributes:
    default: its value in `base`, or a type if the recipe must set it.
    is_allowed: whether a value is valid.
    allowed: description of the valid values, for error messages.
    or_none: whether None is also valid.
    names: the valid values, if they are names.
  """

  default: Any
  is_allowed: Callable[[Any], bool] = lambda value: True
  allowed: str = ""
  or_none: bool = False
  names: tuple[str | None, ...] = ()


def positive(default: Any) -> Setting:
  """A number greater than 0."""
  return Setting(default, lambda value: value > 0, "it must be greater than 0")


def not_negative(default: Any) -> Setting:
  """A number that is at least 0."""
  return Setting(default, lambda value: value >= 0, "it must be 0 or greater")


def below_one(default: Any) -> Setting:
  """A number in [0, 1)."""
  return Setting(default, lambda value: 0 <= value < 1, "it must be in [0, 1)")


def fraction(default: Any) -> Setting:
  """A number in [0, 1]."""
  return Setting(default, lambda value: 0 <= value <= 1, "it must be in [0, 1]")


def one_of(names: Collection[str | None], default: Any) -> Setting:
  """One of the given names."""
  allowed = f"allowed: {', '.join(map(str, names))}"
  return Setting(default, lambda value: value in names, allowed, names=tuple(names))


def steps(default: Any) -> Setting:
  """The first and the last of some steps, counted from 1."""
  allowed = "it must be (first, last), such as (10, 15)"
  return Setting(default, lambda value: len(value) == 2 and 1 <= value[0] <= value[1], allowed)


def optional(setting: Setting | type) -> Setting:
  """The same setting, but None is valid too."""
  setting = setting if isinstance(setting, Setting) else Setting(setting)
  return dataclasses.replace(setting, or_none=True)


# Each key is a `Setting`, a default value, or a type if the recipe must set it.
KEYS: dict[str, Any] = dict(
  seed=not_negative(0),
  init_from=optional(str),  # initial weights: a file, the name of a model, or a run's workdir
  data=dict(
    dataset=str,  # "digits", "folder", or the name of a TFDS dataset
    data_dir=optional(str),  # None: $TFDS_DATA_DIR or ~/tensorflow_datasets; "folder": its root
    train_split="train",  # TFDS syntax, including slices: "train[:90%]"
    eval_split="test",
    test_split=optional(str),  # evaluated once, with the best checkpoint, at the end of the run
    image_size=positive(int),  # side of the model's input, in pixels
    batch_size=positive(int),  # global: over all devices and processes
    eval_batch_size=positive(int),  # global, too
    drop_remainder=True,  # drop the last, smaller batch of an epoch
    group_size=optional(positive(int)),  # images that share BatchNorm and Mixup; None: the batch
    crop=one_of(CROPS, "none"),  # "random_resized": as for ImageNet; on the device if cached
    crop_scale=(0.08, 1.0),  # range of crop area / image area
    crop_ratio=(3 / 4, 4 / 3),  # range of crop width / crop height
    crop_interpolation=one_of(INTERPOLATIONS, "random"),  # "random": one of the two per image
    eval_crop_fraction=positive(0.96),  # side of the centre crop / resized short side
    cache=one_of(CACHES, "none"),  # decoded images: in "host" memory, on the "device" if they fit
  ),
  augment=dict(
    mean=tuple,  # per channel, as fractions of 255
    std=tuple,
    crop_padding=not_negative(0),  # zero pixels around the image before a crop back to image_size
    rotate=not_negative(0.0),  # maximum rotation, in degrees
    shift=not_negative(0.0),  # maximum shift, as a fraction of the side
    zoom=below_one(0.0),  # maximum change of height and of width, as a fraction
    flip=True,  # horizontally, with probability 1/2
    policy=optional(str),  # RandAugment: "rand-m9-mstd0.5-inc1" (timm), "torchvision-n2-m12"
    jitter=not_negative(0.0),  # maximum change of brightness, contrast, saturation; a fraction
    label_smoothing=below_one(0.0),  # share of each label that is spread over all classes
    mixup_alpha=not_negative(0.0),  # of the Beta distribution of the mixing ratio; 0: no Mixup
    cutmix_alpha=not_negative(0.0),  # same for CutMix; if both are set, each mixes half the groups
    erase_probability=fraction(0.0),  # of erasing a rectangle of the normalised image
    erase_mode=one_of(ERASE_MODES, "pixel"),  # noise, as in timm; "constant": 0, as in torchvision
  ),
  model=dict(
    dim=positive(int),
    depth=not_negative(int),
    kernel_size=positive(int),
    patch_size=positive(int),
    num_classes=optional(positive(int)),  # None: taken from the data
    activation=one_of(ACTIVATIONS, "gelu"),  # "gelu" is exact, not the tanh approximation
    dropout=below_one(0.0),  # rate for the pooled features before the head
    initializer=one_of(INITIALIZERS, "torch"),  # PyTorch's; "glorot": that of Keras and Flux
    norm_momentum=below_one(0.9),  # of BatchNorm's running statistics: 1 - PyTorch's momentum
    norm_epsilon=positive(1e-5),  # added to BatchNorm's variance
    depthwise=optional(one_of(IMPLEMENTATIONS, str)),  # "pallas": GPUs, TPUs; None: the platform's
    dtype=one_of(DTYPES, "float32"),  # of the computation; parameters are float32
  ),
  optimizer=dict(
    learning_rate=positive(float),  # the schedule's peak
    weight_decay=not_negative(float),
    decay=one_of(DECAYS, "all"),  # "kernels": excludes biases and BatchNorm
    decay_kind=one_of(DECAY_KINDS, "adamw"),  # "unscaled": without the rate; "l2": in gradients
    b1=below_one(0.9),
    b2=below_one(0.999),
    eps=positive(1e-8),
    eps_hat=False,  # add eps before Adam's bias correction, as Keras does
    clip_norm=optional(positive(float)),  # maximum global gradient norm; None: no clipping
    clip_each=False,  # clip each array by its own norm instead
    backbone_rate=positive(1.0),  # factor on the learning rate of all layers but the head
  ),
  schedule=dict(
    name=one_of(SCHEDULES, "onecycle"),  # "onecycle" is the authors'
    warmup_epochs=not_negative(0),  # "cosine" only: linear from 0
    first_epoch=not_negative(0),  # "onecycle" only: 1 starts the schedule one epoch ahead
  ),
  step=dict(
    loss=one_of(LOSSES, "mean"),  # reduction over the batch: "mean" or "sum"
    accumulate_steps=positive(1),  # equal parts of a batch, whose gradients are accumulated
    ema_decay=optional(below_one(float)),  # also keep and evaluate an EMA of the weights
    freeze_backbone=False,  # train only the head; BatchNorm uses its running statistics
  ),
  run=dict(
    epochs=positive(int),  # also the length of the schedule
    max_steps=optional(positive(int)),  # stop after this many steps; the schedule stays the same
    log_every_steps=positive(50),
    eval_every_epochs=positive(1),
    eval_train=False,  # also evaluate the whole training split, without augmentation
    checkpoint_every_steps=positive(1000),  # in addition to one after each evaluation
    keep_checkpoints=positive(2),  # the latest ones, in addition to the most accurate
    workers=not_negative(0),  # decoding processes, at most one per core; 0: threads
    heartbeat_seconds=positive(100),  # a process silent for this long is dead and ends the others
    stall_seconds=positive(1800),  # with several processes: end after this long without a step
    max_corrupt=not_negative(10),  # corrupt examples to tolerate per split
    profile_steps=optional(steps(tuple)),  # trace (first, last) into WORKDIR/profile
  ),
  parallel=dict(
    fsdp=positive(1),  # devices that share one copy of the parameters and the optimiser state
    scan=False,  # compile one block and scan it over the depth, which compiles faster
    remat=one_of(REMATS, "none"),  # recompute "activations" or "blocks" (and scan): less memory
  ),
)


def base() -> config_dict.ConfigDict:
  """A locked config with all keys, their types and their defaults."""

  def value(key: Any) -> Any:
    if isinstance(key, dict):
      return {name: value(inner) for name, inner in key.items()}
    default = key.default if isinstance(key, Setting) else key
    return config_dict.placeholder(default) if isinstance(default, type) else default

  return config_dict.create(**value(KEYS)).lock()


def flatten(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens a config, or its JSON, to {"section.key": value}."""
  flat: dict[str, Any] = {}
  for name, value in sections.items():
    if isinstance(value, Mapping | config_dict.ConfigDict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def types(config: config_dict.ConfigDict) -> dict[str, type]:
  """The type of each setting, as {"section.key": type}."""
  found: dict[str, type] = {}
  for key in flatten(config):
    *sections, name = key.split(".")
    holder = config
    for section in sections:
      holder = holder[section]
    found[key] = holder.get_type(name)
  return found
