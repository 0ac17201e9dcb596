"""The depthwise convolution and its gradients by definition, in float64 NumPy."""

import numpy as np


def reference(x, kernel, g):
  """Returns the map and both gradients in float64, by definition."""
  x, kernel, g = (np.asarray(a, np.float64) for a in (x, kernel, g))
  (height, width), (rows, columns, _) = x.shape[1:3], kernel.shape
  top, left = (rows - 1) // 2, (columns - 1) // 2
  padded = np.pad(x, ((0, 0), (top, rows // 2), (left, columns // 2), (0, 0)))
  y, padded_grad, kernel_grad = np.zeros_like(x), np.zeros_like(padded), np.zeros_like(kernel)
  for i in range(rows):
    for j in range(columns):
      window = np.s_[:, i : i + height, j : j + width]
      y += padded[window] * kernel[i, j]
      padded_grad[window] += g * kernel[i, j]
      kernel_grad[i, j] = (padded[window] * g).sum((0, 1, 2))
  return y, padded_grad[:, top : top + height, left : left + width], kernel_grad
