"""Depthwise convolution as XLA's grouped convolution: the reference and accelerator default."""

import jax
from jax import Array, lax

ORDER = "bhwc"


def forward(x_bhwc: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_bhwc`, in its shape and dtype."""
  # One group per channel: each group has one input channel, the I of the HWIO kernel.
  return lax.conv_general_dilated(
    x_bhwc,
    kernel_hwc[:, :, None].astype(x_bhwc.dtype),
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=kernel_hwc.shape[2],
  )


def backward(x_bhwc: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_bhwc` and `kernel_hwc`, in their dtypes."""
  _, vjp = jax.vjp(forward, x_bhwc, kernel_hwc)
  return vjp(y_grad)
