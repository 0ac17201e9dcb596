"""A model of the time of 1536/20's train step on many devices, explained in docs/scaling.md.

Run from the repository's root:
  python -m benchmarks.scaling_model

Nothing is measured here. Operations and bytes per image come from `benchmarks.roofline`, payloads
from `benchmarks.scaling`, and the devices' figures from their vendors.
"""

import dataclasses
import math

from absl import app

from benchmarks.roofline import MODELS, work

PARAMETERS = 51_625_960
GRADIENTS = 4 * PARAMETERS  # bytes: float32
STATISTICS = 4 * 2 * 41 * 1536
UPDATE_PASSES = (
  8  # over the parameters' bytes: reads p, m, v and the gradient twice, writes p, m, v
)
IMAGES_PER_CORE = 936  # per second, all host work: docs/performance.md
TRAIN_IMAGES, EPOCHS = 1_281_167, 150
LARGEST_PART = 160  # images that a device processes at a time; more are accumulated in parts
MAP = 2 * 32 * 32 * 1536  # bytes of one image's bfloat16 feature map
# Share of the peaks that large kernels reach: matrix units, vector units, memory.
ATTAINED = (0.80, 0.75, 0.90)
LINE_RATE = 0.80  # share of a link's peak that a large all-reduce reaches
# PyTorch's images/s of 1536/20 in mixed precision, published: the authors' run, 150 epochs in
# about 9 days on ten RTX 8000; and timm's benchmark on an RTX 3090, batch 48.
AUTHORS_RUN = EPOCHS * TRAIN_IMAGES / (9 * 86400) / 10
TIMM_BENCHMARK = 50.1
GOAL = 0.6


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks: bfloat16 and float32 operations/s, and memory bytes/s."""

  matrix: float
  vector: float
  memory: float

  def times(self) -> list[float]:
    """Seconds of each unit for training on one image, at its attained rate."""
    peaks = (self.matrix, self.vector, self.memory)
    needs = work(*MODELS["1536/20"])
    return [need / (peak * share) for need, peak, share in zip(needs, peaks, ATTAINED, strict=True)]

  def seconds(self) -> float:
    """Seconds for training on one image if nothing overlaps."""
    return sum(self.times())


@dataclasses.dataclass(frozen=True)
class System:
  """Devices and links.

  Attributes:
    chip, devices: kind and number of devices.
    node: devices connected by `link`; in a TPU slice, all.
    host: devices per host machine.
    link: bytes/s that a device sends to its neighbors, over all links together.
    network: bytes/s between nodes for each device.
    hop: latency in seconds from device to device, within and between nodes.
  """

  chip: Chip
  devices: int
  node: int
  host: int
  link: float
  network: float
  hop: tuple[float, float]

  def all_reduce(self, size: float) -> float:
    """Seconds of reduce-scatter in each node, all-reduce between nodes, and all-gather."""
    nodes = self.devices // self.node
    inner = 2 * (self.node - 1) / self.node * size / (self.link * LINE_RATE)
    inner += 2 * (self.node - 1) * self.hop[0]
    if nodes == 1:
      return inner
    outer = 2 * (nodes - 1) / nodes * (size / self.node) / (self.network * LINE_RATE)
    return inner + outer + 2 * (nodes - 1) * self.hop[1]


H200 = Chip(989e12, 67e12, 4.8e12)
RTX_8000 = Chip(130.5e12, 16.3e12, 0.672e12)
V5P = Chip(459e12, 14e12, 2.765e12)
RTX_3090 = Chip(71e12, 35.6e12, 0.936e12)
SYSTEMS = {
  "8 H200": System(H200, 8, 8, 8, 450e9, 0, (3e-6, 0)),
  "64 H200, 400 Gb/s a GPU": System(H200, 64, 8, 8, 450e9, 50e9, (3e-6, 10e-6)),
  "64 H200, 400 Gb/s a node": System(H200, 64, 8, 8, 450e9, 50e9 / 8, (3e-6, 10e-6)),
  "v5p-256: 128 chips": System(V5P, 128, 128, 4, 600e9, 0, (1e-6, 0)),
}


def fractions() -> tuple[float, ...]:
  """Shares of the speed that `Chip.seconds` allows: two published figures, and the goal."""
  return AUTHORS_RUN * RTX_8000.seconds(), TIMM_BENCHMARK * RTX_3090.seconds(), GOAL


def predict(system: System, batch: int, fraction: float) -> dict[str, float]:
  """One step: milliseconds, images/s, and the efficiency relative to devices that run alone."""
  images = batch / system.devices
  parts = math.ceil(images / LARGEST_PART)
  compute = images * system.chip.seconds() / fraction
  reduce = parts * system.all_reduce(GRADIENTS + STATISTICS)
  update = UPDATE_PASSES * 4 * PARAMETERS / (system.chip.memory * ATTAINED[2])
  # At best, all but the last block's gradients are sent during the backward pass.
  hidden = min(19 / 20 * reduce, 2 / 3 * compute)
  step = compute + update + reduce
  return {
    "images": images,
    "parts": parts,
    "compute": 1e3 * compute,
    "reduce": 1e3 * reduce,
    "update": 1e3 * update,
    "step": 1e3 * step,
    "rate": batch / step,
    "alone": (compute + update) / step,
    "overlapped": (compute + update) / (step - hidden),
    "days": TRAIN_IMAGES * EPOCHS / (batch / step) / 86400,
    "cores": batch / step / (system.devices / system.host) / IMAGES_PER_CORE,
  }


def print_steps() -> None:
  """Prints the steps of all systems at both batches; triples are for the three `fractions`."""
  names = ("system, batch", "images per device", "all-reduce, ms", "compute, ms", "images/s",
           "efficiency, no overlap, %", "with overlap, %", "150 epochs, days",
           "cores per host for images")  # fmt: skip
  print(f"| {' | '.join(names)} |\n" + "|---" * len(names) + "|")
  for name, system in SYSTEMS.items():
    for batch in (640, 10_240):
      steps = [predict(system, batch, fraction) for fraction in fractions()]
      first = steps[0]
      parts = f" in {first['parts']} parts" if first["parts"] > 1 else ""
      cells = [
        f"{name}, {batch:,}",
        f"{first['images']:.0f}{parts}",
        f"{first['reduce']:.1f}",
        " / ".join(f"{p['compute']:,.0f}" for p in steps),
        " / ".join(f"{p['rate']:,.0f}" for p in steps),
        " / ".join(f"{100 * p['alone']:.1f}" for p in steps),
        " / ".join(f"{100 * p['overlapped']:.1f}" for p in steps),
        " / ".join(f"{p['days']:.2f}" for p in steps),
        " / ".join(f"{p['cores']:.1f}" for p in steps),
      ]
      print(f"| {' | '.join(cells)} |")


def print_memory() -> None:
  """Prints the memory of one device: the state, and what is kept for the gradient."""
  state, copy = 3 * 4 * PARAMETERS, 2 * 4 * PARAMETERS
  print(f"\nstate {state / 1e9:.2f} GB, sharded over 8 devices {state / 8e9:.2f}; parameters and "
        f"gradients in the step {copy / 1e9:.2f} GB\n")  # fmt: skip
  print("| images at a time | none, GB | activations, GB | blocks, GB |\n|---|---|---|---|")
  for images in (5, 10, 64, 80, 160):
    kept = images * MAP * 4 * 20  # per block: both convolutions' inputs and outputs
    outputs = images * MAP * (2 * 20 + 2 * 4)  # both convolutions' outputs, and as in `blocks`
    blocks = images * MAP * (20 + 2 * 4)  # each block's input, and one block with its gradients
    print(f"| {images} | {kept / 1e9:.1f} | {outputs / 1e9:.1f} | {blocks / 1e9:.1f} |")


def main(argv: list[str]) -> None:
  """Prints all tables."""
  del argv
  for name, chip in {"H200": H200, "v5p": V5P, "RTX 8000": RTX_8000, "RTX 3090": RTX_3090}.items():
    matrix, vector, memory = (1e6 * seconds for seconds in chip.times())
    print(
      f"{name}: matrix units {matrix:.0f} us, vector units {vector:.0f} us, memory {memory:.0f} us "
      f"per image; {1 / chip.seconds():.0f} images/s if nothing overlaps"
    )
  print(
    f"the authors' {AUTHORS_RUN:.1f} images/s per RTX 8000 are {fractions()[0]:.0%} of that, "
    f"timm's {TIMM_BENCHMARK} on an RTX 3090 {fractions()[1]:.0%}\n"
  )
  print_steps()
  print_memory()


if __name__ == "__main__":
  app.run(main)
