"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter) in JAX and Flax.

The letters after the underscore in an array's name are its dimensions: b batch, h height, w width,
c channels, k classes, f features (the model's width, `dim`). For example, `image_bhwc` is a batch
of images, and `logits_bk` has one score per class.

Importing this package needs only JAX and Flax.
"""

from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.model.names import list_models
from convmixer_jax.zoo import create_model

__all__ = ["ConvMixer", "create_model", "list_models"]
__version__ = "0.1.0"
