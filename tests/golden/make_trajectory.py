"""Writes `trajectory_*.npz`: 20 training steps of a small ConvMixer in PyTorch.

Run from the repository's root after `pip install -e '.[torch]'`:
  python tests/golden/make_trajectory.py

Two recipes, on five epochs of four batches with the authors' schedule: "imagenet" (GELU, AdamW
with eps 1e-3 that decays kernels alone, clipping, label smoothing) and "cifar" (ReLU, everything
decays, eps 1e-8, no clipping). The decay is stronger than theirs, so that its lack would be seen.
"""

import pathlib

import numpy as np
import torch
from torch_convmixer import conv_mixer, flatten, to_variables

EPOCHS, STEPS_PER_EPOCH, BATCH, CLASSES, DEVIATION = 5, 4, 16, 7, 64
# activation, peak, eps, weight decay, whether kernels alone decay, clipping, label smoothing
RECIPES = {
  "imagenet": ("gelu", 0.03, 1e-3, 0.5, True, 0.7, 0.1),
  "cifar": ("relu", 0.05, 1e-8, 0.05, False, None, 0.0),
}


def main() -> None:
  """One file for each recipe."""
  for seed, (name, recipe) in enumerate(RECIPES.items()):
    activation, peak, eps, weight_decay, kernels_alone, clip_norm, smoothing = recipe
    torch.manual_seed(seed)
    model = conv_mixer(12, 2, 5, 2, CLASSES, activation)
    image = torch.randint(0, 256, (STEPS_PER_EPOCH * BATCH, 3, 8, 8), dtype=torch.uint8)
    label = torch.randint(0, CLASSES, (len(image),))
    arrays = {"image": image.permute(0, 2, 3, 1).numpy(), "label": label.numpy().astype(np.int32)}
    arrays |= flatten(to_variables(model), "before/")
    kernels = [p for p in model.parameters() if p.ndim > 1 or not kernels_alone]
    others = [p for p in model.parameters() if p.ndim == 1 and kernels_alone]
    groups = [
      {"params": kernels, "weight_decay": weight_decay},
      {"params": others, "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, eps=eps)
    knots = [0, 2 * EPOCHS // 5, 4 * EPOCHS // 5, EPOCHS]
    losses, norms = [], []
    for step in range(EPOCHS * STEPS_PER_EPOCH):
      for group in optimizer.param_groups:
        group["lr"] = np.interp((step + 1) / STEPS_PER_EPOCH, knots, [0, peak, peak / 20, 0])
      rows = slice(step % STEPS_PER_EPOCH * BATCH, (step % STEPS_PER_EPOCH + 1) * BATCH)
      logits = model((image[rows].float() - 127.5) / DEVIATION)
      loss = torch.nn.functional.cross_entropy(logits, label[rows], label_smoothing=smoothing)
      optimizer.zero_grad()
      loss.backward()
      limit = float("inf") if clip_norm is None else clip_norm
      norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item())
      optimizer.step()
      losses.append(loss.item())
    arrays |= {"loss": np.float64(losses), "grad_norm": np.float64(norms)}
    arrays |= flatten(to_variables(model), "after/")
    np.savez_compressed(pathlib.Path(__file__).with_name(f"trajectory_{name}.npz"), **arrays)


if __name__ == "__main__":
  main()
