"""One depthwise convolution in float32: ours, XLA's own, and PyTorch's in both memory formats.

After `pip install -e '.[torch]'`, run from the repository's root:
  python -m benchmarks.depthwise [--rounds=9] [--xla] [--json=FILE]

"fwd+bwd" is the forward pass and both gradients. "ratio" is the time of PyTorch's faster
format over the row's, the median over rounds. XLA's own convolution is measured only with --xla: at
the largest shape one backward pass takes most of a minute.
"""

from collections.abc import Callable
import functools

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import rounds
from convmixer_jax.depthwise import depthwise_conv

# batch, height, width, channels, kernel size
SHAPES = (
  (64, 16, 16, 256, 5),
  (8, 32, 32, 768, 7),
  (8, 32, 32, 1536, 9),
  (64, 32, 32, 256, 9),
  (128, 8, 8, 64, 5),
)


def jax_calls(convolve: Callable, *arrays: np.ndarray) -> dict:
  """Calls of the forward pass alone, and with both gradients."""
  x, kernel, g = map(jnp.asarray, arrays)

  def with_gradients(x, kernel, g):
    y, vjp = jax.vjp(convolve, x, kernel)
    return y, vjp(g)

  forward, both = jax.jit(convolve), jax.jit(with_gradients)
  return {
    "fwd": lambda: jax.block_until_ready(forward(x, kernel)),
    "fwd+bwd": lambda: jax.block_until_ready(both(x, kernel, g)),
  }


def torch_calls(memory_format: torch.memory_format, *arrays: np.ndarray) -> dict:
  """The same calls in PyTorch."""
  x, g = (
    torch.tensor(a).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    for a in (arrays[0], arrays[2])
  )
  kernel = torch.tensor(arrays[1]).permute(2, 0, 1)[:, None].contiguous(memory_format=memory_format)
  x.requires_grad_()
  kernel.requires_grad_()

  def forward() -> torch.Tensor:
    return torch.nn.functional.conv2d(x, kernel, padding="same", groups=x.shape[1])

  def inference() -> None:
    with torch.no_grad():
      forward()

  return {"fwd": inference, "fwd+bwd": lambda: torch.autograd.grad(forward(), (x, kernel), g)}


def measure(shape: tuple[int, ...]) -> list[dict]:
  """One row for each mode and implementation."""
  *maps, k = shape
  random = np.random.default_rng(0)
  sizes = (maps, (k, k, maps[-1]), maps)
  arrays = [random.standard_normal(size, np.float32) for size in sizes]
  implementations = {
    "torch contiguous": torch_calls(torch.contiguous_format, *arrays),
    "torch channels_last": torch_calls(torch.channels_last, *arrays),
  }
  for name in ("native", "taps", "xla") if flags.FLAGS.xla else ("native", "taps"):
    convolve = functools.partial(depthwise_conv, implementation=name)
    implementations[f"ours, {name}"] = jax_calls(convolve, *arrays)
  rows = []
  for mode in ("fwd", "fwd+bwd"):
    calls = {name: pair[mode] for name, pair in implementations.items()}
    times = rounds.interleaved(calls, flags.FLAGS.rounds)
    rows += [
      {
        "shape (b, h, w, c, k)": ", ".join(map(str, shape)),
        "mode": mode,
        "implementation": name,
        "ms": 1e3 * float(np.median(seconds)),
        "ratio": rounds.ratio(times, name),
      }
      for name, seconds in times.items()
    ]
  return rows


def main(argv: list[str]) -> None:
  """Measures all shapes and prints the table."""
  del argv
  rounds.report("Depthwise convolution", [row for shape in SHAPES for row in measure(shape)])


if __name__ == "__main__":
  rounds.define_flags()
  flags.DEFINE_bool("xla", False, "Also measure XLA's own convolution.")
  app.run(main)
