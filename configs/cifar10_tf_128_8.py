"""ConvMixer-128/8, kernel 8, on CIFAR-10: the Cooper Union study with eight blocks.

Command:   python -m convmixer_jax.main --config=configs/cifar10_tf_128_8.py
Reaches:   further below the paper than 128/4, in a figure only; not measured here.
Source:    as `cifar10_tf_128_4.py`, whose docstring lists the particulars.
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("cifar10_tf_128_4.py"))
  config.model.depth = 8
  return config
