"""ConvMixer-128/4, kernel 8, on CIFAR-10: the Cooper Union study's figure 4b, 200 epochs.

Command:   python -m convmixer_jax.main --config=configs/cifar10_tf_onecycle.py
Reaches:   there curves alone, with a "wild validation accuracy", which the study mended by
           stronger augmentation; hardware and time not told; not measured here.
Source:    "Deep Learning Midterm: ConvMixer" (TensorFlow): the authors' schedule without weight
           decay or clipping, and Keras's ImageDataGenerator as in the second phase (rotation
           10 degrees, shift and zoom 10 %, flip). Not told: the peak and the batch, here those
           of the final phase, as is what `cifar10_tf_128_4.py` says of the schedule.
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
