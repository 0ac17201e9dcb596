"""ConvMixer-768/32, pretrained on ImageNet-1k, fine-tuned on CIFAR-10 at 224x224 pixels.

Command:   python -m convmixer_jax.main --config=configs/finetune_cifar10.py
Reaches:   not measured. The settings are not a published recipe, but common values
           for fine-tuning; the backbone has a tenth of the head's learning rate.
           --config.step.freeze_backbone=True trains only the head, and
           --config.data.image_size=112 takes about a quarter of the time.
Source:    the authors' weights, as published by timm (convmixer_768_32, 80.16 % on
           ImageNet-1k), with the mean and std that they were trained with.
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.init_from = "convmixer_768_32"
  config.data.update(
    dataset="cifar10",
    image_size=224,  # resized from 32 on the host, bicubic or bilinear
    batch_size=128,
    eval_batch_size=128,
    crop="random_resized",
    crop_scale=(0.75, 1.0),
    eval_crop_fraction=1.0,  # the whole image
  )
  config.augment.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), label_smoothing=0.1)
  config.model.update(
    dim=768,
    depth=32,
    kernel_size=7,
    patch_size=7,
    num_classes=10,
    activation="relu",
    dtype="bfloat16",
  )
  config.optimizer.update(
    learning_rate=1e-3, weight_decay=0.01, decay="kernels", clip_norm=1.0, backbone_rate=0.1
  )
  config.schedule.update(name="cosine", warmup_epochs=1)
  config.run.epochs = 10
  return config
