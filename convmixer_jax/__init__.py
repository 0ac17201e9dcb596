"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter) in JAX and Flax.

Letters in names of arrays, after an underscore, give their dimensions:
  b  batch      h  height     w  width      c  channels
  k  classes    f  features (the model's width, `dim`)
so `image_bhwc` is a batch of images and `logits_bk` a score for every class.
"""

from convmixer_jax.model import ConvMixer

__all__ = ["ConvMixer"]
