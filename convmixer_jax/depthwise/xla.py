"""Depthwise convolution as XLA's grouped convolution: the reference, and what accelerators get."""

import jax
from jax import Array, lax


def forward(x: Array, kernel_hwc: Array, layout: str) -> Array:
  """Returns the map of `x`'s shape and dtype; `layout` names its dimensions, such as 'bhwc'."""
  # One group per channel: every group sees one input channel, the I of the HWIO kernel. XLA writes
  # batch as N.
  spec = layout.upper().replace("B", "N")
  return lax.conv_general_dilated(
    x,
    kernel_hwc[:, :, None].astype(x.dtype),
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=(spec, "HWIO", spec),
    feature_group_count=kernel_hwc.shape[2],
  )


def backward(x: Array, kernel_hwc: Array, y_grad: Array, layout: str) -> tuple[Array, Array]:
  """Returns the gradients of `x` and `kernel_hwc`, in their dtypes."""
  _, vjp = jax.vjp(lambda x, kernel: forward(x, kernel, layout), x, kernel_hwc)
  return vjp(y_grad)
