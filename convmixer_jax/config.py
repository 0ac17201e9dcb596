"""Every setting of a run: its type, default, meaning and allowed values.

A file in `configs/` starts from `base()` and sets the keys of its recipe. Keys
that have only a type here must be set by the recipe. No other module declares keys.
"""

import ast
from collections.abc import Callable, Collection, Mapping
import dataclasses
import difflib
import json
import math
import os
import pathlib
import re
import runpy
import traceback
from typing import Any

from ml_collections import config_dict

from convmixer_jax import storage
from convmixer_jax.augment import policy
from convmixer_jax.augment.erase import ERASE_MODES
from convmixer_jax.data.preprocess import CROPS, INTERPOLATIONS
from convmixer_jax.data.shard_batch import CACHES
from convmixer_jax.depthwise import IMPLEMENTATIONS
from convmixer_jax.errors import UserError
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.layers import DTYPES, INITIALIZERS
from convmixer_jax.optim.loss import LOSSES
from convmixer_jax.optim.optimizer import DECAY_KINDS, DECAYS
from convmixer_jax.optim.schedules import SCHEDULES

# Sections that may change when a run resumes: its length, logging, checkpointing, data workers and
# devices. Every other section determines the result.
FREE_SECTIONS = ("run", "parallel")


@dataclasses.dataclass(frozen=True)
class Setting:
  """The default and the constraints of one key.

  Attributes:
    default: its value in `base`, or a type if the recipe must set it.
    is_allowed: whether a value is valid.
    allowed: description of the valid values, for error messages.
    or_none: whether None is also valid.
  """

  default: Any
  is_allowed: Callable[[Any], bool] = lambda value: True
  allowed: str = ""
  or_none: bool = False


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
  return Setting(default, lambda value: value in names, f"allowed: {', '.join(map(str, names))}")


def optional(setting: Setting | type) -> Setting:
  """The same setting, but None is valid too."""
  setting = setting if isinstance(setting, Setting) else Setting(setting)
  return dataclasses.replace(setting, or_none=True)


# Each key is a `Setting`, a default value, or a type if the recipe must set it.
_KEYS: dict[str, Any] = dict(
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
    depthwise=optional(one_of(IMPLEMENTATIONS, str)),  # "pallas" is for GPUs; None: by the platform
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
  ),
  parallel=dict(
    fsdp=positive(1),  # devices that share one copy of the parameters and the optimiser state
    scan=False,  # compile one block and scan it over the depth, which compiles faster
    remat=False,  # scan, and recompute each block's feature maps for its gradient: less memory
  ),
)


# Old locations of keys in the config.json of earlier runs, and their new ones.
_RENAMED = {("optimizer", name): ("step", name) for name in _KEYS["step"]}
_RENAMED["run", "max_damaged"] = ("run", "max_corrupt")


def base() -> config_dict.ConfigDict:
  """A locked config with all keys, their types and their defaults."""

  def value(key: Any) -> Any:
    if isinstance(key, dict):
      return {name: value(inner) for name, inner in key.items()}
    default = key.default if isinstance(key, Setting) else key
    return config_dict.placeholder(default) if isinstance(default, type) else default

  return config_dict.create(**value(_KEYS)).lock()


def flatten(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens a config, or its JSON, to {"section.key": value}."""
  flat: dict[str, Any] = {}
  for name, value in sections.items():
    if isinstance(value, Mapping | config_dict.ConfigDict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def validate(config: config_dict.ConfigDict) -> None:
  """Checks everything that needs neither data nor devices.

  Raises:
    UserError: for an invalid setting; names the key, its value and what is allowed.
  """
  settings = flatten(_KEYS)
  for key, value in flatten(config).items():
    _check(f"config.{key}", value, settings[key])
  image, patch = config.data.image_size, config.model.patch_size
  if image % patch:
    raise UserError(
      f"config.model.patch_size is {patch}, which does not divide config.data.image_size={image}: "
      f"set one of them, such as --config.model.patch_size={math.gcd(image, patch)}"
    )
  if len(config.augment.mean) != len(config.augment.std):
    raise UserError(
      f"config.augment.mean={config.augment.mean} and config.augment.std={config.augment.std} "
      "need the same number of values, one for each channel"
    )
  warmup, epochs = config.schedule.warmup_epochs, config.run.epochs
  if config.schedule.name == "cosine" and warmup >= epochs:
    raise UserError(
      f"config.schedule.warmup_epochs is {warmup}, but it must be less than config.run.epochs="
      f"{epochs}: set, for example, --config.schedule.warmup_epochs={epochs // 2}"
    )
  if config.step.freeze_backbone and config.init_from is None:
    raise UserError(
      "config.step.freeze_backbone is True, but config.init_from is not set: a frozen backbone"
      " needs pretrained weights, set --config.init_from=WEIGHTS"
    )
  _check_groups(config)
  if config.augment.policy is not None:
    policy.parse(config.augment.policy)


def _check(key: str, value: Any, setting: Any) -> None:
  setting = setting if isinstance(setting, Setting) else Setting(setting)
  if value is None:
    if not setting.or_none:
      raise UserError(f"{key} is not set: set it in the config file or with --{key}=")
    return
  numbers = value if isinstance(value, tuple) else (value,) * isinstance(value, float)
  if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
    raise UserError(f"{key} is {value}; only finite numbers are allowed")
  if not setting.is_allowed(value):
    raise UserError(f"{key} is {value!r}; {setting.allowed}")


def batch_unit(config: config_dict.ConfigDict) -> int:
  """What must divide the batch size: accumulate_steps x group size, or x 2 for Mixup's pairs."""
  mixes = config.augment.mixup_alpha or config.augment.cutmix_alpha
  group = config.data.group_size or (2 if mixes else 1)
  return config.step.accumulate_steps * group


def _check_groups(config: config_dict.ConfigDict) -> None:
  """Checks that the batch divides into parts and groups, and groups into pairs for Mixup."""
  batch, parts = config.data.batch_size, config.step.accumulate_steps
  group, unit = config.data.group_size, batch_unit(config)
  such_as = (
    f"set a multiple of {unit}, such as --config.data.batch_size={max(batch // unit, 1) * unit}"
  )
  if (config.augment.mixup_alpha or config.augment.cutmix_alpha) and group and group % 2:
    raise UserError(
      f"config.augment.mixup_alpha and cutmix_alpha mix pairs of images, but a group has {group}: "
      f"set an even size, such as --config.data.group_size={group + 1}"
    )
  if batch % parts:
    raise UserError(
      f"config.step.accumulate_steps is {parts}, which does not divide "
      f"config.data.batch_size={batch}: {such_as}"
    )
  if group and batch // parts % group:
    raise UserError(
      f"config.data.group_size is {group}, which does not divide the {batch // parts} images of "
      f"config.data.batch_size={batch} / config.step.accumulate_steps={parts}: {such_as}"
    )
  if batch % unit:
    raise UserError(
      f"config.augment.mixup_alpha and cutmix_alpha mix pairs of images, but a group has "
      f"{batch // parts}: {such_as}"
    )


def names() -> list[str]:
  """The names of the configs in this package, for `--config=NAME`."""
  return sorted(path.stem for path in _shipped().glob("*.py"))


def _shipped() -> pathlib.Path:
  """The directory of the configs: inside an installed package, next to it in a checkout."""
  installed = pathlib.Path(__file__).with_name("configs")
  return installed if installed.is_dir() else installed.parents[1] / "configs"


def path_of(name: str) -> pathlib.Path:
  """Resolves --config: a file at this path, or else the shipped config of this name.

  Raises:
    UserError: if there is neither; lists the names.
  """
  path = pathlib.Path(os.path.expanduser(name))
  if path.is_file():
    return path
  if name.removesuffix(".py") in names():
    return _shipped() / f"{path.stem}.py"
  near = "".join(f" Did you mean {n}?" for n in difflib.get_close_matches(path.stem, names(), 1))
  raise UserError(
    f"--config={name} is neither a file nor the name of a config.{near} The names are "
    f"{', '.join(names())}"
  )


def read(path: pathlib.Path) -> config_dict.ConfigDict:
  """Runs a config file and returns its config. Config files use it to extend one another.

  Raises:
    UserError: with the file and the line, if it does not parse, raises, or returns a config whose
      keys or types differ from `base`.
  """
  try:
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
      raise UserError(f"{path} does not define get_config(), which must return the settings")
    config = get_config()
  except UserError:  # from a file that this one reads
    raise
  except SyntaxError as error:
    where = f"{error.filename or path}, line {error.lineno}"
    raise UserError(f"{where}: SyntaxError: {error.msg}") from None
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    raise UserError(f"{where}: {_reason(error)}") from None
  if mistake := _not_as_in_base(config):
    code = getattr(get_config, "__code__", None)
    where = f"{path}, line {code.co_firstlineno}" if code else str(path)
    raise UserError(
      f"{where}: get_config() returns {mistake}. Start from convmixer_jax.config.base(), which "
      "has all keys with their types"
    )
  return config


def _reason(error: Exception) -> str:
  """An exception in one line."""
  inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
  text = str(inner.args[0] if isinstance(inner, KeyError) and inner.args else inner)
  # The message of ml_collections lists all other keys of the section, but not its name.
  key = re.match(r'Key "(\w+)" does not exist', text) or re.fullmatch(
    r"'(\w+)'(\nDid you mean .*)?", text
  )
  if key and isinstance(error, AttributeError | KeyError):
    return f"the key {key[1]} does not exist; {_nearest(key[1])}"
  return f"{type(error).__name__}: {' '.join(text.split())}"


def _not_as_in_base(config: Any) -> str | None:
  """How the keys or types of a recipe's config differ from `base`, or None."""
  if not isinstance(config, config_dict.ConfigDict):
    return f"{type(config).__name__}, not a ConfigDict"
  known, found = types(base()), types(config)
  for key in known:
    if key not in found:
      section = key.partition(".")[0]
      return f"no config.{key if section in config else section}"
  for key, kind in found.items():
    if key not in known:
      return f"config.{key}, which does not exist; {_nearest(key)}"
    if kind is not known[key]:
      return f"config.{key} of type {kind.__name__}, which must be {known[key].__name__}"
  return None


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


def _numbers(text: str) -> tuple[float, ...]:
  value = ast.literal_eval(text)
  value = tuple(value) if isinstance(value, list | tuple) else (value,)
  sum(value)  # raises TypeError unless all are numbers
  return value


_FROM_TEXT: dict[type | None, tuple[Callable[[str], Any], str]] = {
  str: (str, "a string"),
  int: (int, "an integer"),
  float: (float, "a number"),
  bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
  tuple: (_numbers, "numbers such as (0.5,0.25)"),
}


def override(config: config_dict.ConfigDict, key: str, text: str) -> None:
  """Sets config.KEY from its text on the command line; "None" means None.

  Raises:
    UserError: for an unknown key (suggests the nearest one) or a value of another type.
  """
  kind = types(config).get(key)
  if kind not in _FROM_TEXT:
    what = "is a section, not a setting" if key in config else "does not exist"
    raise UserError(f"config.{key} {what}; {_nearest(key)}")
  parse, wanted = _FROM_TEXT[kind]
  try:
    value = None if text == "None" else parse(text)
  except (KeyError, SyntaxError, TypeError, ValueError):
    raise UserError(f"config.{key} is {text!r}; it must be {wanted}") from None
  config.update_from_flattened_dict({key: value})


def _nearest(key: str) -> str:
  """Suggests a key for an unknown one, and lists the keys of its section."""
  known = list(flatten(base()))
  sections = dict.fromkeys(k.partition(".")[0] for k in known if "." in k)
  section, _, name = (key, "", "") if key in sections else key.rpartition(".")
  if section not in sections:
    section = next(iter(difflib.get_close_matches(section, sections, 1)), "")
  everywhere = {k.rpartition(".")[2]: k for k in known} | {s: s for s in sections}
  here = {k.partition(".")[2]: k for k in known if k.startswith(f"{section}.")}
  exact = [name] if name in everywhere else []
  near = exact or difflib.get_close_matches(name, here or everywhere, 1, 0.65)
  meant = "".join(f"did you mean config.{(everywhere | here)[n]}? " for n in near)
  top = [k for k in known if "." not in k] + list(sections)
  return f"{meant}config{'.' * bool(section)}{section} has: {', '.join(here or top)}"


def check_resumable(config: config_dict.ConfigDict, path: pathlib.Path) -> None:
  """Checks the config against the one that the run started with, if `path` exists.

  The sections `run` and `parallel` may differ.

  Raises:
    UserError: names each key that differs, with both values.
  """
  if not path.exists():
    return
  before, now = flatten(json.loads(to_json(read_json(path)))), flatten(json.loads(to_json(config)))
  differing = [
    f"config.{key} was {before[key]!r} and is {now[key]!r}"
    for key in now
    if key.partition(".")[0] not in FREE_SECTIONS and before[key] != now[key]
  ]
  if differing:
    raise UserError(
      f"{path} is the config of another run: {'; '.join(differing)}. Use the settings that it "
      f"started with, or a new --workdir. Only config.run.* and config.parallel.* may change"
    )


def write_json(config: config_dict.ConfigDict, path: pathlib.Path) -> None:
  """Writes the resolved config atomically; creates the directory if needed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  storage.write_whole(path, to_json(config))


def to_json(config: config_dict.ConfigDict) -> str:
  """The resolved config as an indented JSON object with the sections of `base`."""
  return config.to_json_best_effort(indent=2) + "\n"


def read_json(path: pathlib.Path) -> config_dict.ConfigDict:
  """Reads a config that `write_json` wrote.

  Raises:
    UserError: if the file is missing or not such a config.
  """
  config = base()
  try:
    fields = json.loads(path.read_text())
    for (old_section, old), (section, name) in _RENAMED.items():
      if old in fields.get(old_section, {}):
        fields.setdefault(section, {})[name] = fields[old_section].pop(old)
    config.update(fields)
  except FileNotFoundError:
    raise UserError(f"{path} does not exist: --workdir must be the directory of a run") from None
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} is not the config of a run: {error}") from None
  if flatten(config).keys() != flatten(base()).keys():
    raise UserError(f"{path} is not the config of a run: a section is missing")
  return config
