"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter) in JAX and Flax.

Letters in names of arrays, after an underscore, give their dimensions:
  b  batch      h  height     w  width      c  channels
  k  classes    f  features (the model's width, `dim`)
so `image_bhwc` is a batch of images and `logits_bk` a score for every class.

These names need nothing but JAX and Flax.
"""

from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.model.names import list_models
from convmixer_jax.zoo import create_model

__all__ = ["ConvMixer", "create_model", "list_models"]
__version__ = "0.1.0"
