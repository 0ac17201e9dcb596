"""ConvMixer-128/4, kernel 8, on CIFAR-10: the Cooper Union study's figure 4b, 200 epochs.

Command:   python -m convmixer_jax.main --config=configs/cifar10_tf_onecycle.py
Reaches:   curves only, with a "wild validation accuracy", which the study fixed with
           stronger augmentation; no hardware or time reported; not measured here.
Source:    "Deep Learning Midterm: ConvMixer" (TensorFlow): the authors' schedule without weight
           decay or clipping, and Keras's ImageDataGenerator as in the second phase (rotation
           10 degrees, shift and zoom 10 %, flip). It does not state the peak learning rate and
           the batch size, here as in the final phase; `cifar10_tf_128_4.py` describes the
           schedule.
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("cifar10_tf_128_4.py"))
  config.data.crop = "none"
  config.augment.update(policy=None, rotate=10.0, shift=0.1, zoom=0.1)
  return config
