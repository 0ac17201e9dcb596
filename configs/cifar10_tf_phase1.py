"""ConvMixer-128/4, kernel 8, on CIFAR-10: the Cooper Union study's first phase.

Command:   python -m convmixer_jax.main --config=configs/cifar10_tf_phase1.py
Reaches:   "about 88.5 %" reported, without hardware or time; not measured here.
Source:    "Deep Learning Midterm: ConvMixer" (TensorFlow): Adam at a constant learning rate, no
           augmentation. It does not state the learning rate (here Keras's default), the epochs
           (here as in the second phase) or the batch size (here as in the final phase).
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("cifar10_tf_128_4.py"))
  config.data.crop = "none"
  config.augment.update(policy=None, flip=False)
  config.optimizer.learning_rate = 1e-3
  config.schedule.update(name="constant", first_epoch=0)
  config.run.epochs = 50
  return config
