"""Errors of every depthwise convolution and its gradients, against the definition in float64.

Run from the repository's root:
  python -m benchmarks.numerics

Each figure is the worst over the shapes: the largest absolute error over the largest absolute
value. Our kernels for TPUs and GPUs run in Pallas's interpreter.
"""

from collections.abc import Callable
import functools
from typing import Any

from absl import app
import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import depthwise
from convmixer_jax.depthwise import orders, pallas_gpu, pallas_tpu
from tests.depthwise_reference import reference

# Batch, height, width, channels, kernel rows and columns: odd, even, larger than the map, oblong.
SHAPES = (
  (4, 32, 32, 4, 9, 9),
  (4, 32, 32, 4, 7, 7),
  (4, 16, 16, 4, 5, 5),
  (2, 64, 64, 2, 15, 15),
  (3, 8, 8, 3, 3, 3),
  (2, 14, 14, 3, 7, 8),
  (2, 28, 20, 2, 4, 5),
  (2, 9, 40, 2, 15, 2),
)

# (x, kernel, y_grad), maps [b, h, w, c] -> the map and both gradients
Both = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


def by_name(implementation: str) -> Both:
  """Of `depthwise_conv`."""

  def both(x: jax.Array, kernel: jax.Array, y_grad: jax.Array) -> tuple:
    convolve = functools.partial(depthwise.depthwise_conv, implementation=implementation)
    y, pullback = jax.vjp(convolve, x, kernel)
    return y, *pullback(y_grad)

  return both


def interpreted(module: Any) -> Both:
  """Of our kernels, on CPU."""

  def both(x: jax.Array, kernel: jax.Array, y_grad: jax.Array) -> tuple:
    grid = x.shape[1:3]
    x, y_grad = (orders.reorder(a, "bhwc", "cbhw", grid) for a in (x, y_grad))
    y = module.forward(x, kernel, interpret=True)
    x_grad, kernel_grad = module.backward(x, kernel, y_grad, interpret=True)
    return *(orders.reorder(a, "cbhw", "bhwc", grid) for a in (y, x_grad)), kernel_grad

  return both


def errors(both: Both, shape: tuple[int, ...], dtype: str) -> list[float]:
  """Of the map, the gradient of the input and that of the kernel; the kernel is float32."""
  batch, height, width, channels, rows, columns = shape
  rng = np.random.default_rng(0)
  x, y_grad = (
    jnp.asarray(rng.standard_normal((batch, height, width, channels)), dtype) for _ in range(2)
  )
  # Representable in bfloat16, as the model's kernels are rounded to the maps' type.
  kernel = jnp.asarray(rng.standard_normal((rows, columns, channels)), dtype).astype("float32")
  return [
    float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
    for got, want in zip(
      jax.jit(both)(x, kernel, y_grad), reference(x, kernel, y_grad), strict=True
    )
  ]


def main(argv: list[str]) -> None:
  """One row of a Markdown table for each implementation and dtype."""
  del argv
  names = ("xla", "taps", "native", "banded")
  rows: dict[str, Both] = {name: by_name(name) for name in names}
  rows |= {"pallas, TPUs": interpreted(pallas_tpu), "pallas, GPUs": interpreted(pallas_gpu)}
  print("| | dtype | map | gradient of the input | of the kernel |\n|---|---|---|---|---|")
  for dtype in ("float32", "bfloat16"):
    for name, both in rows.items():
      if name == "pallas, GPUs" and dtype == "float32":
        continue  # left to XLA
      worst = np.max([errors(both, shape, dtype) for shape in SHAPES], axis=0)
      print(f"| {name} | {dtype} | {' | '.join(f'{error:.1e}' for error in worst)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
