"""ConvMixer-256/8 on CIFAR-10 as in the Keras example, 10 epochs.

Command:   python -m convmixer_jax.main --config=configs/cifar10_keras.py
Reaches:   83.25 % of the test images reported, for the checkpoint that is best on 5,000
           held-out training images, in about 4 minutes on one V100; not measured here.
Source:    Image classification with ConvMixer, keras.io. Its random crop to 32 pixels is the
           identity. Its AdamW (TensorFlow Addons) does not multiply the weight decay by the
           learning rate, so its 1e-4 corresponds to 0.1 in PyTorch. Its epsilon, Keras's
           default, is added before Adam's bias correction. Float32.
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.data.update(
    dataset="cifar10",
    train_split="train[10%:]",
    eval_split="train[:10%]",
    test_split="test",
    image_size=32,
    batch_size=128,
    eval_batch_size=500,
    drop_remainder=False,  # 352 steps per epoch
    cache="device",
  )
  config.augment.update(mean=(0.0,) * 3, std=(1.0,) * 3)  # pixel values / 255
  config.model.update(
    dim=256,
    depth=8,
    kernel_size=5,
    patch_size=2,
    num_classes=10,
    initializer="glorot",
    norm_momentum=0.99,
    norm_epsilon=1e-3,
  )
  config.optimizer.update(
    learning_rate=1e-3, weight_decay=1e-4, decay_kind="unscaled", eps=1e-7, eps_hat=True
  )
  config.schedule.name = "constant"
  config.run.epochs = 10
  return config
