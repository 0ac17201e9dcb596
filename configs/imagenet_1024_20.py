"""ConvMixer-1024/20 with patches of 14 on ImageNet-1k, otherwise as 1536/20.

Command:   python -m convmixer_jax.main --config=configs/imagenet_1024_20.py
Reaches:   76.94 % top-1 reported, with the augmentation of `imagenet_1536_20`; not
           measured here.
Source:    locuslab/convmixer, README. No source states the epochs; 150 is our guess.
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("imagenet_1536_20.py"))
  config.model.update(dim=1024, patch_size=14)
  return config
