"""ConvMixer-1536/20 on ImageNet-1k, 150 epochs: the paper's large model.

Command:   python -m convmixer_jax.main --config=configs/imagenet_1536_20.py
Reaches:   81.37 % top-1 reported, in about 9 days on 10 RTX 8000; not measured here.
Source:    locuslab/convmixer, README, and the defaults of its timm (train.py), which
           include the weight decay of 2e-5 and the label smoothing. BatchNorm and Mixup use
           each GPU's 64 images there, groups of 64 here. It computes in fp16, here bfloat16.
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.seed = 42
  config.data.update(
    dataset="imagenet2012",
    eval_split="validation",
    image_size=224,
    batch_size=640,
    eval_batch_size=640,
    group_size=64,
    crop="random_resized",
  )
  config.augment.update(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    policy="rand-m9-mstd0.5-inc1",
    label_smoothing=0.1,
    mixup_alpha=0.5,
    cutmix_alpha=0.5,
    erase_probability=0.25,
  )
  config.model.update(
    dim=1536, depth=20, kernel_size=9, patch_size=7, num_classes=1000, dtype="bfloat16"
  )
  config.optimizer.update(
    learning_rate=0.01, weight_decay=2e-5, decay="kernels", eps=1e-3, clip_norm=1.0
  )
  config.run.update(epochs=150, workers=16)
  return config
