"""ConvMixer-256/8, kernel 7, patch 2, on CIFAR-10 as in labml.ai's experiment, 150 epochs.

Command:   python -m convmixer_jax.main --config=configs/cifar10_labml_256_8.py
Reaches:   no accuracy, hardware or time reported; not measured here.
Source:    labml_nn/conv_mixer/experiment.py, and labml_nn/experiments/cifar10.py for the data:
           Adam at a constant learning rate, a crop after 4 pixels of padding, and flips. labml's
           Adam adds epsilon before the bias correction. Its blocks are initialized as copies of
           one block; here each is initialized independently.
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.data.update(
    dataset="cifar10",
    image_size=32,
    batch_size=64,
    eval_batch_size=500,
    drop_remainder=False,
    cache="device",
  )
  config.augment.update(mean=(0.5,) * 3, std=(0.5,) * 3, crop_padding=4)
  config.model.update(dim=256, depth=8, kernel_size=7, patch_size=2, num_classes=10)
  config.optimizer.update(learning_rate=2.5e-4, weight_decay=0.0, eps_hat=True)
  config.schedule.name = "constant"
  config.run.epochs = 150
  return config
