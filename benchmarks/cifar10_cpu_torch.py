"""The settings of `configs/cifar10_cpu.py` in PyTorch: the accuracy and the time to compare with.

Command, after `pip install -e '.[torch]'`, from the repository's root:
  TFDS_DATA_DIR=... python -m benchmarks.cifar10_cpu_torch [--epochs=10] [--seed=0]

ConvMixer-64/4, kernel 5, patch 4, batch 128, AdamW with weight decay 0.01 on every
parameter and eps 1e-8, peak 0.01 on the authors' schedule, flips, mean and deviation,
plain cross-entropy, float32, channels last. Prints one JSON line for each epoch.
"""

import json
import time

from absl import app, flags
import numpy as np
import torch

from convmixer_jax.data import in_memory
from convmixer_jax.preprocess import Preprocess
from convmixer_jax.source import open_source
from tests.golden.torch_convmixer import conv_mixer

BATCH, PEAK = 128, 0.01
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
  """Normalised images [n, 3, 32, 32] and labels [n]."""
  source = in_memory(open_source("cifar10", split), Preprocess(32))
  images = (source.images / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
  return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(source.labels).long()


def test(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
  """Accuracy."""
  model.eval()
  with torch.no_grad():
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum((model(x).argmax(1) == y).sum().item() for x, y in parts) / len(labels)


def main(argv: list[str]) -> None:
  """Trains and prints."""
  del argv
  epochs = flags.FLAGS.epochs
  torch.manual_seed(flags.FLAGS.seed)
  train_images, train_labels = load("train")
  test_images, test_labels = load("test")
  model = conv_mixer(64, 4, 5, 4, 10).to(memory_format=torch.channels_last)
  optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01, eps=1e-8)
  steps = len(train_images) // BATCH
  knots, values = [0, 2 * epochs // 5, 4 * epochs // 5, epochs], [0, PEAK, PEAK / 20, 0]
  for epoch in range(epochs):
    model.train()
    order, loss_sum, start = torch.randperm(len(train_images)), 0.0, time.perf_counter()
    for i in range(steps):
      optimizer.param_groups[0]["lr"] = np.interp(epoch + (i + 1) / steps, knots, values)
      rows = order[i * BATCH : (i + 1) * BATCH]
      is_flipped = torch.rand(BATCH, 1, 1, 1) < 0.5
      image = train_images[rows]
      image = torch.where(is_flipped, image.flip(3), image)
      image = image.to(memory_format=torch.channels_last)
      loss = torch.nn.functional.cross_entropy(model(image), train_labels[rows])
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      loss_sum += loss.item()
    line = {
      "epoch": epoch + 1,
      "loss": loss_sum / steps,
      "accuracy": test(model, test_images, test_labels),
      "images_per_sec": steps * BATCH / (time.perf_counter() - start),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  flags.DEFINE_integer("epochs", 10, "Epochs, and the schedule's length.")
  flags.DEFINE_integer("seed", 0, "Of the initialisation, order and flips.")
  app.run(main)
