"""Trains one of our CIFAR-10 configs in PyTorch, as a baseline for accuracy and time.

After `pip install -e '.[torch]'`, run from the repository's root:
  TFDS_DATA_DIR=... python -m benchmarks.cifar10_torch --config=configs/cifar10_cpu.py

It applies the settings of the config file, and overrides such as --config.seed=1, to PyTorch's own
network, optimizer and BatchNorm. Flips and torchvision's RandAugment run on the host with Pillow,
as in the authors' script. It supports the settings of cifar10_cpu, cifar10_keras and cifar10_256_8.
On a GPU a bfloat16 config runs under autocast; on CPU everything is float32. Prints a JSON line for
each epoch.
"""

from collections.abc import Callable
import json
import random
import time

from absl import app, flags
from ml_collections import config_flags
import numpy as np
import PIL.Image
import torch

from convmixer_jax import config as config_lib
from convmixer_jax.augment import policy as policy_lib
from convmixer_jax.data.batches import in_memory
from convmixer_jax.data.datasets import open_source
from convmixer_jax.data.preprocess import Preprocess
from tests import pillow_augment
from tests.golden.torch_convmixer import conv_mixer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_model(config) -> torch.nn.Module:
  """The network, with Keras's initialization and BatchNorm if the config says so."""
  m = config.model
  model = conv_mixer(m.dim, m.depth, m.kernel_size, m.patch_size, m.num_classes, m.activation)
  for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.momentum, module.eps = 1 - m.norm_momentum, m.norm_epsilon
    elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and m.initializer == "glorot":
      fan_in, receptive = module.weight[0].numel(), module.weight[0, 0].numel()
      bound = (6 / (fan_in + len(module.weight) * receptive)) ** 0.5
      torch.nn.init.uniform_(module.weight, -bound, bound)
      torch.nn.init.zeros_(module.bias)
  return model.to(DEVICE, memory_format=torch.channels_last)


def make_augment(config) -> Callable[[np.ndarray], np.ndarray]:
  """A function that flips and augments uint8 images [b, h, w, c] at random."""
  rng = random.Random(config.seed)
  policy = config.augment.policy and policy_lib.parse(config.augment.policy)

  def one(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels[:, ::-1] if config.augment.flip and rng.random() < 0.5 else pixels
    if not policy:
      return pixels
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    settings = (int(policy.layers), int(policy.magnitude))
    return np.asarray(pillow_augment.torchvision_rand_augment(image, *settings, rng))

  return lambda images: np.stack([one(image) for image in images])


def learning_rate(config, epochs_done: float) -> float:
  """The authors' schedule, or a constant."""
  peak, epochs = config.optimizer.learning_rate, config.run.epochs
  if config.schedule.name == "constant":
    return peak
  knots = [0, 2 * epochs // 5, 4 * epochs // 5, epochs]
  return float(np.interp(epochs_done, knots, [0, peak, peak / 20, 0]))


def normalized(config, images: np.ndarray) -> torch.Tensor:
  """uint8 [b, h, w, c] -> float32 on the device, channels last in memory."""
  scaled = torch.from_numpy(np.ascontiguousarray(images)).to(DEVICE).float() / 255
  mean, std = (torch.tensor(v, device=DEVICE) for v in (config.augment.mean, config.augment.std))
  return ((scaled - mean) / std).permute(0, 3, 1, 2)


def test(config, model: torch.nn.Module, source) -> float:
  """Accuracy on a split."""
  model.eval()
  with torch.no_grad():
    right = 0
    for start in range(0, len(source), 500):
      rows = slice(start, start + 500)
      predicted = model(normalized(config, source.images[rows])).argmax(1).cpu().numpy()
      right += int((predicted == source.labels[rows]).sum())
  return right / len(source)


def main(argv: list[str]) -> None:
  """Trains, and prints a JSON line for each epoch."""
  del argv
  config = flags.FLAGS.config
  config_lib.validate(config)
  o, data = config.optimizer, config.data
  splits = [data.train_split, data.eval_split] + [data.test_split] * bool(data.test_split)
  train, *tests = (
    in_memory(open_source(data.dataset, split, data.data_dir), Preprocess(data.image_size))
    for split in splits
  )
  torch.manual_seed(config.seed)
  model, augment = make_model(config), make_augment(config)
  unscaled = o.decay_kind == "unscaled"
  optimizer = torch.optim.AdamW(
    model.parameters(), weight_decay=0.0 if unscaled else o.weight_decay, eps=o.eps
  )
  size = data.batch_size
  steps = len(train) // size if data.drop_remainder else -(-len(train) // size)
  last = min(config.run.epochs * steps, config.run.max_steps or config.run.epochs * steps)
  autocast = torch.autocast(
    DEVICE.type, torch.bfloat16, DEVICE.type == "cuda" and config.model.dtype == "bfloat16"
  )
  start = time.perf_counter()
  for step in range(last):
    if step % steps == 0:
      model.train()
      order, loss_sum, right = torch.randperm(len(train)).numpy(), 0.0, 0
    rows = order[step % steps * size :][:size]
    for group in optimizer.param_groups:
      group["lr"] = learning_rate(config, (step + 1) / steps)
      if o.eps_hat:  # Keras adds it before the bias correction
        group["eps"] = o.eps / (1 - o.b2 ** (step + 1)) ** 0.5
    image = normalized(config, augment(train.images[rows]))
    label = torch.from_numpy(train.labels[rows]).long().to(DEVICE)
    with autocast:
      logits = model(image).float()
    loss = torch.nn.functional.cross_entropy(logits, label)
    optimizer.zero_grad()
    loss.backward()
    if unscaled:  # TensorFlow Addons' decay, before its Adam
      with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 1 - o.weight_decay)
    optimizer.step()
    loss_sum += loss.item() * len(rows)
    right += (logits.argmax(1) == label).sum().item()
    if (step + 1) % steps == 0 or step + 1 == last:
      count = (step % steps + 1) * size
      line = {"epoch": (step + 1) / steps, "loss": loss_sum / count, "accuracy": right / count}
      names = ("eval_accuracy", "test_accuracy")
      line |= {
        name: test(config, model, source) for name, source in zip(names, tests, strict=False)
      }
      line["seconds"] = time.perf_counter() - start
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "Config file; --config.k=v overrides a setting.")
  app.run(main)
