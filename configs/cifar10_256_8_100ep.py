"""ConvMixer-256/8 on CIFAR-10: run B of the authors' script, 100 epochs.

Command:   python -m convmixer_jax.main --config=configs/cifar10_256_8_100ep.py
Reaches:   more than 94 % reported, in about 71 minutes on one RTX 2080 Ti; not measured here.
Source:    locuslab/convmixer-cifar10, README and train.py: run A with more epochs, colour
           jitter and torchvision's random erasing.
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("cifar10_256_8.py"))
  config.augment.update(jitter=0.2, erase_probability=0.2, erase_mode="constant")
  config.run.epochs = 100
  return config
