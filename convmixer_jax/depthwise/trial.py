"""Tries implementations on a device: are their results right, and which one is the fastest?"""

from collections.abc import Sequence
import functools
import math
import time
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from convmixer_jax.depthwise import depthwise_conv, order_of, orders

# Of the norm of the difference from XLA's result at the highest precision.
TOLERANCES = {"bfloat16": 1e-2, "float32": 1e-5}


class Trial(NamedTuple):
  """What one implementation did.

  Attributes:
    name: the implementation.
    seconds: of a forward and a backward pass; infinite if it may not be taken.
    problem: why it may not be taken, or "".
  """

  name: str
  seconds: float
  problem: str = ""

  def __str__(self) -> str:
    return f"{self.name} {self.problem or f'{1e3 * self.seconds:.3g} ms'}"


def try_each(
  candidates: Sequence[str],
  shape_bhwc: tuple[int, int, int, int],
  kernel_size: int,
  dtype: str,
  device: jax.Device,
) -> list[Trial]:
  """Runs each candidate, forward and backward, on random feature maps.

  An implementation that raises an exception, or whose output, input gradient or kernel gradient
  differs from XLA's by more than `TOLERANCES`, may not be taken.

  Args:
    candidates: names of implementations.
    shape_bhwc: of the feature maps on one device.
    kernel_size: side of the kernels.
    dtype: "float32" or "bfloat16".
    device: where to run.
  """
  with jax.default_device(device):
    x_key, kernel_key, grad_key = jax.random.split(jax.random.key(0), 3)
    x_bhwc = jax.random.normal(x_key, shape_bhwc, dtype)
    y_grad = jax.random.normal(grad_key, shape_bhwc, dtype)
    kernel_hwc = jax.random.normal(kernel_key, (kernel_size, kernel_size, shape_bhwc[-1]), dtype)
    with jax.default_matmul_precision("highest"):
      expected = _program("xla", shape_bhwc)(x_bhwc, kernel_hwc, y_grad)
    return [_try(name, expected, x_bhwc, kernel_hwc, y_grad) for name in candidates]


def fastest(trials: Sequence[Trial]) -> str:
  """The name of the fastest implementation that may be taken; "xla" if there is none."""
  best = min(trials, key=lambda trial: trial.seconds, default=None)
  return "xla" if best is None or best.problem else best.name


def _try(name: str, expected: Any, x_bhwc: Array, kernel_hwc: Array, y_grad: Array) -> Trial:
  try:
    (_, height, width, _), order = x_bhwc.shape, order_of(name)
    program, grid = _program(name, x_bhwc.shape), (height, width)
    x, grad = (orders.reorder(array, "bhwc", order, grid) for array in (x_bhwc, y_grad))
    arguments = x, kernel_hwc, grad
    y, x_grad, kernel_grad = jax.block_until_ready(program(*arguments))
    maps = (orders.reorder(array, order, "bhwc", grid) for array in (y, x_grad))
    found = *maps, kernel_grad
    error = max(map(_relative_error, found, expected))
    if not error <= TOLERANCES[x_bhwc.dtype.name]:
      return Trial(name, math.inf, f"differs from xla by {error:.1e}")
    return Trial(name, _seconds(program, arguments))
  except Exception as error:  # compilers and kernels raise many types of errors
    reason = str(error).partition("\n")[0][:100]
    return Trial(name, math.inf, f"raises {type(error).__name__}: {reason}")


def _program(name: str, shape_bhwc: tuple[int, ...]) -> Any:
  """Jitted: (x, kernel, y_grad) -> (y, x_grad, kernel_grad), maps in the implementation's order."""
  order, (_, height, width, _) = order_of(name), shape_bhwc
  grid = (height, width) if "p" in order else None
  conv = functools.partial(depthwise_conv, implementation=name, order=order, grid=grid)

  @jax.jit
  def run(x: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array, Array]:
    y, vjp = jax.vjp(conv, x, kernel_hwc)
    return y, *vjp(y_grad)

  return run


def _relative_error(found: Array, expected: Array) -> float:
  found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
  return float(jnp.linalg.norm((found - expected).ravel()) / jnp.linalg.norm(expected.ravel()))


def _seconds(program: Any, arguments: tuple[Array, ...]) -> float:
  """The shortest of three rounds, each of as many calls as take about 50 ms."""

  def timed(calls: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready([program(*arguments) for _ in range(calls)][-1])
    return (time.perf_counter() - start) / calls

  calls = max(1, min(100, int(0.05 / timed(1))))
  return min(timed(calls) for _ in range(3))
