"""ConvMixer-768/32 on ImageNet-1k: ReLU, 300 epochs, otherwise as 1536/20.

Command:   python -m convmixer_jax.main --config=configs/imagenet_768_32.py
Reaches:   80.16 % top-1 reported, in about 8 days on 10 RTX 8000; not measured here.
Source:    locuslab/convmixer, README; its released weights were trained with ReLU.
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("imagenet_1536_20.py"))
  config.model.update(dim=768, depth=32, kernel_size=7, activation="relu")
  config.run.epochs = 300
  return config
