"""The Cooper Union study's sweep over six ConvMixers on CIFAR-10: its second phase, 50 epochs each.

Command:   python -m convmixer_jax.sweep --config=configs/cifar10_tf_sweep.py \\
             --over=model.dim=128,256 --over=model.depth=4,8,12
Reaches:   figures only, of accuracy against parameters and against relative time per epoch;
           not measured here. To train a single model: --config=configs/cifar10_tf_sweep.py
Source:    "Deep Learning Midterm: ConvMixer" (TensorFlow): slanted triangle to 1e-3, Keras's
           ImageDataGenerator (rotation 10 degrees, shift and zoom 10 %, flip), dropout 20 %,
           L2 penalty 1e-3 on kernels, whose gradient is 2e-3 times the weight. Batch size as
           in the final phase.
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("cifar10_tf_128_4.py"))
  config.data.crop = "none"
  config.augment.update(policy=None, rotate=10.0, shift=0.1, zoom=0.1)
  config.model.dropout = 0.2
  config.optimizer.update(learning_rate=1e-3, weight_decay=2e-3, decay="kernels", decay_kind="l2")
  config.schedule.update(name="slanted_triangle", first_epoch=0)
  config.run.epochs = 50
  return config
