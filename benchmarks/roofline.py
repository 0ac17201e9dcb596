"""The limits of a training step on one H200: operations and bytes of each model, and their times.

Run from the repository's root:
  python -m benchmarks.roofline

Counted for one image in bfloat16. Operations: the forward pass, and twice that for the backward
pass. Bytes: each convolution reads its input and writes its output, and sums BatchNorm's statistics
along the way; normalization reads and writes. Backward, the activation and BatchNorm take two
passes (the sums, then the gradient), and each convolution takes one for each gradient. That is 29
feature maps of h x w x dim per block, with nothing cached between passes. The rates are those that
large kernels reach, not the data sheet's.
"""

from absl import app

MATRIX, VECTOR, MEMORY = 790e12, 50e12, 4.3e12  # operations/s bf16, operations/s float32, bytes/s
MAPS_PER_BLOCK = 29

# name: dim, depth, kernel, patch, image size
MODELS = {
  "1536/20": (1536, 20, 9, 7, 224),
  "768/32": (768, 32, 7, 7, 224),
  "1024/20": (1024, 20, 9, 14, 224),
  "256/8 k5 p2": (256, 8, 5, 2, 32),
  "256/8 k9 p1": (256, 8, 9, 1, 32),
}


def work(dim: int, depth: int, kernel: int, patch: int, size: int) -> tuple[float, float, float]:
  """Training on one image: operations pointwise, operations depthwise, bytes moved."""
  positions = (size // patch) ** 2
  pointwise = 3 * 2 * positions * (depth * dim**2 + dim * 3 * patch**2)
  depthwise = 3 * 2 * positions * depth * dim * kernel**2
  return pointwise, depthwise, 2 * positions * dim * (MAPS_PER_BLOCK * depth)


def main(argv: list[str]) -> None:
  """Prints a Markdown table."""
  del argv
  columns = ("model", "pointwise GFLOP", "depthwise GFLOP", "GB moved", "matrix units, us",
             "CUDA cores, us", "memory, us", "sum, images/s", "memory alone, images/s")  # fmt: skip
  print(f"| {' | '.join(columns)} |")
  print("|" + "---|" * 9)
  for name, sizes in MODELS.items():
    pointwise, depthwise, moved = work(*sizes)
    matrix, vector, memory = pointwise / MATRIX, depthwise / VECTOR, moved / MEMORY
    print(
      f"| {name} | {pointwise / 1e9:.1f} | {depthwise / 1e9:.2f} | {moved / 1e9:.3f} "
      f"| {1e6 * matrix:.1f} | {1e6 * vector:.1f} | {1e6 * memory:.1f} "
      f"| {1 / (matrix + vector + memory):,.0f} | {1 / memory:,.0f} |"
    )


if __name__ == "__main__":
  app.run(main)
