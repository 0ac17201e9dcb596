"""ConvMixer-64/4 on CIFAR-10: ten epochs, minutes on a laptop's CPU.

Command:   python -m convmixer_jax.main --config=configs/cifar10_cpu.py
Reaches:   74.9 % on the JPEG copy of CIFAR-10 in 2 min 20 s on 2 CPU cores (docs/results.md).
Source:    our own; `benchmarks/cifar10_torch.py` is the same recipe in PyTorch.
"""

import pathlib

from ml_collections import config_dict

from convmixer_jax.config import read


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = read(pathlib.Path(__file__).with_name("cifar10_256_8.py"))
  config.data.update(batch_size=128, eval_batch_size=500, drop_remainder=True)
  config.augment.policy = None
  config.model.update(dim=64, depth=4, patch_size=4, dtype="float32")
  config.optimizer.update(learning_rate=0.01, weight_decay=0.01)
  config.run.epochs = 10
  return config
