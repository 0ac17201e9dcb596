"""ConvMixer-256/8 on CIFAR-10: run A of the authors' script, 25 epochs.

Command:   python -m convmixer_jax.main --config=configs/cifar10_256_8.py
Reaches:   92.60 % reported, in about 18 minutes on one RTX 2080 Ti; not measured here.
Source:    locuslab/convmixer-cifar10, README and train.py. Its crop of scale 1 and
           ratio 1 is the identity, its clipping is off, weight decay applies to all
           parameters, and it computes in fp16 (here bfloat16).
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.data.update(
    dataset="cifar10",
    image_size=32,
    batch_size=512,
    eval_batch_size=512,
    drop_remainder=False,  # 98 steps per epoch, the last with 336 images
    cache="device",
  )
  config.augment.update(
    mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616), policy="torchvision-n2-m12"
  )
  config.model.update(
    dim=256, depth=8, kernel_size=5, patch_size=2, num_classes=10, dtype="bfloat16"
  )
  config.optimizer.update(learning_rate=0.05, weight_decay=0.005)
  config.run.epochs = 25
  return config
