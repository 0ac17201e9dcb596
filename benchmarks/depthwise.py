"""Times one depthwise convolution on CPU: this package's, XLA's own, and PyTorch's.

    python -m benchmarks.depthwise [--json] [--rounds 9] [--xla] [--shapes 64,16,16,256,5 ...]

All take turns within each round. The table gives medians in milliseconds, and the ratio of
PyTorch's median (the faster memory format) to that of the row; fwd+bwd is the forward pass and both
gradients.
"""

import argparse
from collections.abc import Callable
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from convmixer_jax.depthwise import depthwise_conv, depthwise_conv_cbhw

SHAPES = ["64,16,16,256,5", "8,32,32,768,7", "8,32,32,1536,9", "64,32,32,256,9", "128,8,8,64,5"]
# XLA's backward pass takes a minute at the largest of these, so it is timed only up to this many
# multiplications.
XLA_LIMIT = 2e8


def jax_calls(
  conv: Callable, axes: tuple[int, ...], x: np.ndarray, kernel: np.ndarray, g: np.ndarray
) -> dict:
  """The jitted forward pass, and it with both gradients, on arrays laid out by `axes`."""
  x, g = (jnp.asarray(np.ascontiguousarray(a.transpose(axes))) for a in (x, g))
  kernel = jnp.asarray(kernel)

  def both(x, kernel, g):
    y, vjp = jax.vjp(conv, x, kernel)
    return y, vjp(g)

  forward, both = jax.jit(conv), jax.jit(both)
  return {
    "fwd": lambda: jax.block_until_ready(forward(x, kernel)),
    "fwd+bwd": lambda: jax.block_until_ready(both(x, kernel, g)),
  }


def torch_calls(memory_format, x: np.ndarray, kernel: np.ndarray, g: np.ndarray) -> dict:
  """The same two in PyTorch."""
  x, g = (
    torch.tensor(a).permute(0, 3, 1, 2).contiguous(memory_format=memory_format) for a in (x, g)
  )
  kernel = torch.tensor(kernel).permute(2, 0, 1)[:, None].contiguous(memory_format=memory_format)
  x.requires_grad_()
  kernel.requires_grad_()

  def forward():
    return torch.nn.functional.conv2d(x, kernel, padding="same", groups=x.shape[1])

  def inference():
    with torch.no_grad():
      forward()

  return {"fwd": inference, "fwd+bwd": lambda: torch.autograd.grad(forward(), (x, kernel), g)}


def milliseconds(call: Callable) -> float:
  """Of one call."""
  start = time.perf_counter()
  call()
  return 1e3 * (time.perf_counter() - start)


def measure(shape: str, rounds: int, with_xla: bool) -> list[dict]:
  """One row for each implementation and mode."""
  batch, height, width, channels, size = map(int, shape.split(","))
  rng = np.random.default_rng(0)
  x, g = (rng.standard_normal((batch, height, width, channels), np.float32) for _ in range(2))
  kernel = rng.standard_normal((size, size, channels), np.float32)
  formats = {
    "torch contiguous": torch.contiguous_format,
    "torch channels_last": torch.channels_last,
  }
  calls = {
    name: torch_calls(memory_format, x, kernel, g) for name, memory_format in formats.items()
  }
  calls["ours bhwc"] = jax_calls(depthwise_conv, (0, 1, 2, 3), x, kernel, g)
  calls["ours cbhw"] = jax_calls(depthwise_conv_cbhw, (3, 0, 1, 2), x, kernel, g)
  if with_xla and x.size * size**2 <= XLA_LIMIT:
    xla = functools.partial(depthwise_conv, implementation="xla")
    calls["xla bhwc"] = jax_calls(xla, (0, 1, 2, 3), x, kernel, g)
  first = {
    name: milliseconds(pair["fwd"]) + milliseconds(pair["fwd+bwd"]) for name, pair in calls.items()
  }
  times = {(name, mode): [] for name in calls for mode in ("fwd", "fwd+bwd")}
  for _ in range(rounds):
    for (name, mode), taken in times.items():
      taken.append(milliseconds(calls[name][mode]))
  rows = []
  for (name, mode), taken in times.items():
    row = {"shape": shape, "implementation": name, "mode": mode, "first_call_ms": first[name]}
    for kind, statistic in (("median", np.median), ("best", min)):
      row[f"{kind}_ms"] = float(statistic(taken))
      row[f"{kind}_ratio"] = (
        min(float(statistic(times[f, mode])) for f in formats) / row[f"{kind}_ms"]
      )
    rows.append(row)
  return rows


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--shapes", nargs="+", default=SHAPES, help="batch,height,width,channels,kernel"
  )
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument(
    "--xla", action="store_true", help="also time XLA's own convolution at the smaller shapes"
  )
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  rows = [row for shape in args.shapes for row in measure(shape, args.rounds, args.xla)]
  if args.json:
    print(json.dumps(rows, indent=2))
    return
  print(
    f"{'shape':18}{'implementation':21}{'mode':9}"
    f"{'median ms':>11}{'ratio':>7}{'best ms':>10}{'ratio':>7}"
  )
  for r in rows:
    print(
      f"{r['shape']:18}{r['implementation']:21}{r['mode']:9}{r['median_ms']:11.2f}{r['median_ratio']:7.2f}"
      f"{r['best_ms']:10.2f}{r['best_ratio']:7.2f}"
    )


if __name__ == "__main__":
  main()
