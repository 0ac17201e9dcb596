"""ConvMixer-768/32, trained on ImageNet-1k, fine-tuned on CIFAR-10 at 224x224 pixels.

Command:   python -m convmixer_jax.main --config=configs/finetune_cifar10.py
Reaches:   not measured. Nor are these settings anybody's recipe: customary values
           for fine-tuning, with a tenth of the head's learning rate below it.
           --config.step.freeze_backbone=True trains the head alone, and
           --config.data.image_size=112 takes about a quarter of the time.
Source:    the weights are the authors', as timm publishes them (convmixer_768_32,
           80.16 % on ImageNet-1k); mean and std are those they were trained with.
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.init_from = "convmixer_768_32"
  config.data.update(
    dataset="cifar10",
    image_size=224,  # from 32, bicubic or bilinear, on the host
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
