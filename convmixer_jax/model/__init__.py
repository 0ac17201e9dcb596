"""The network: `ConvMixer`, its layers, and the named models' sizes."""

from convmixer_jax.model.convmixer import ConvMixer

__all__ = ["ConvMixer"]
