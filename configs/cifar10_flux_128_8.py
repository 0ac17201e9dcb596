"""ConvMixer-128/8 on CIFAR-10 as in the Flux blog, 200 epochs without augmentation.

Command:   python -m convmixer_jax.main --config=configs/cifar10_flux_128_8.py
Reaches:   74 % reported, without hardware or time; not measured here.
Source:    "A ConvMixer architecture" (Flux.jl), and FluxML/model-zoo, whose model call matches
           the function's signature (the blog's does not). The loss is summed over the batch,
           weight decay is L2 and added before clipping, each array is clipped separately, and
           GELU is the tanh form. Its training curves evaluate the whole training split after
           each epoch, in test mode: the split "train_eval".
"""

from ml_collections import config_dict

from convmixer_jax.config import base


def get_config() -> config_dict.ConfigDict:
  """The settings."""
  config = base()
  config.data.update(
    dataset="cifar10",
    image_size=32,
    batch_size=128,
    eval_batch_size=500,
    drop_remainder=False,
    cache="device",
  )
  config.augment.update(mean=(0.0,) * 3, std=(1.0,) * 3, flip=False)  # pixel values / 255
  config.model.update(
    dim=128,
    depth=8,
    kernel_size=7,
    patch_size=2,
    num_classes=10,
    activation="gelu_tanh",
    initializer="glorot",
  )
  config.optimizer.update(
    learning_rate=3e-4,
    weight_decay=1e-3,
    decay_kind="l2",
    clip_norm=1.0,
    clip_each=True,
  )
  config.step.loss = "sum"
  config.schedule.name = "constant"
  config.run.update(epochs=200, eval_train=True)
  return config
