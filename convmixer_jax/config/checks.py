"""Checks of settings: each value by itself, and those that must agree."""

import math
from typing import Any

from ml_collections import config_dict

from convmixer_jax.augment import policy
from convmixer_jax.config.keys import KEYS, Setting, flatten
from convmixer_jax.errors import UserError


def validate(config: config_dict.ConfigDict) -> None:
  """Checks everything that needs neither data nor devices.

  Raises:
    UserError: for an invalid setting; names the key, its value and what is allowed.
  """
  settings = flatten(KEYS)
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
