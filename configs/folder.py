"""ConvMixer-256/8 on your own photos: a directory with one subdirectory of images per class.

Command:   python -m convmixer_jax.main --config=configs/folder.py --config.data.data_dir=DIR
           DIR has train/CLASS/ and val/CLASS/ (or validation, valid, test), or only CLASS/:
           then a fifth of each class is held out. The number of classes is detected.
Reaches:   not measured. With only a few hundred photos, fine-tuning ImageNet weights is more
           accurate than training from scratch: --config=configs/finetune_cifar10.py
           --config.data.dataset=folder --config.data.data_dir=DIR
           --config.data.eval_split=validation --config.model.num_classes=NUMBER
Source:    our own; batches are small so that a few dozen photos are enough to start.
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.data.update(
    dataset="folder",
    eval_split="validation",
    image_size=128,
    batch_size=16,
    eval_batch_size=16,
    crop="random_resized",
    crop_scale=(0.25, 1.0),
  )
  config.augment.update(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), jitter=0.2, label_smoothing=0.1
  )
  config.model.update(dim=256, depth=8, kernel_size=7, patch_size=8)
  config.optimizer.update(learning_rate=2e-3, weight_decay=0.05, decay="kernels", clip_norm=1.0)
  config.schedule.update(name="cosine", warmup_epochs=5)
  config.run.update(epochs=60, eval_every_epochs=5)
  return config
