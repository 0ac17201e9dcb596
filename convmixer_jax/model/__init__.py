"""The network: `ConvMixer`, its layers and the named models."""

from convmixer_jax.model.convmixer import ConvMixer

__all__ = ["ConvMixer"]
