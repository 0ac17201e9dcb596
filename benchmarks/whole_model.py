"""Train steps and inference of whole models in float32 on CPU: ours and PyTorch's.

After `pip install -e '.[torch]'`, run from the repository's root:
  python -m benchmarks.whole_model --mode=train [--rounds=9] [--compile] [--plain]
    [--json=FILE]
  python -m benchmarks.whole_model --mode=inference

A train step is that of `convmixer_jax.training.step` without augmentation; both sides use AdamW.
"ratio" is the time of PyTorch's fastest row over the row's, the median over rounds. --compile
adds torch.compile, which needs a C++ compiler; --plain adds our model with XLA's own
convolution, which takes minutes.
"""

from collections.abc import Callable
import functools

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import rounds
from convmixer_jax import ConvMixer
from convmixer_jax.augment import Augmentation
from convmixer_jax.checkpoint.state import create_state
from convmixer_jax.optim.optimizer import make_optimizer
from convmixer_jax.parallel import sharding
from convmixer_jax.training.step import train_step
from tests.golden.torch_convmixer import conv_mixer

# dim, depth, kernel, patch, activation, batch, image size
MODELS = {
  "256/8": (256, 8, 5, 2, "gelu", 64, 32),
  "64/4": (64, 4, 5, 4, "gelu", 128, 32),
  "768/32": (768, 32, 7, 7, "relu", 2, 224),
}
CLASSES = 10
AUGMENTATION = Augmentation((0.5,) * 3, (0.25,) * 3, CLASSES, flip=False)


def jax_call(name: str, image: np.ndarray, label: np.ndarray, **attributes) -> Callable:
  """A train step or inference of our model."""
  dim, depth, kernel, patch, activation, _, size = MODELS[name]
  mesh = sharding.make_mesh()
  model = ConvMixer(dim, depth, kernel, patch, CLASSES, activation, mesh=mesh, **attributes)
  optimizer = make_optimizer(optax.constant_schedule(1e-3), weight_decay=0.01, decay="all")
  state = create_state(model, optimizer, mesh, seed=0, image_shape=(size, size, 3))
  batch = {"image": jnp.asarray(image), "label": jnp.asarray(label), "mask": jnp.ones(len(label))}
  if flags.FLAGS.mode == "inference":
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    normalized = (batch["image"] / 255 - 0.5) / 0.25
    apply = jax.jit(model.apply)
    return lambda: apply(variables, normalized).block_until_ready()
  step = jax.jit(
    functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      schedule=optax.constant_schedule(1e-3),
      augmentation=AUGMENTATION,
    ),
    donate_argnums=0,
  )
  states = [state]

  def call() -> None:
    states[0], _ = step(states[0], batch)
    jax.block_until_ready(states[0])

  return call


def torch_call(
  name: str,
  image: np.ndarray,
  label: np.ndarray,
  memory_format: torch.memory_format = torch.contiguous_format,
  is_compiled: bool = False,
) -> Callable:
  """A train step or inference of the reference."""
  dim, depth, kernel, patch, activation, *_ = MODELS[name]
  is_training = flags.FLAGS.mode == "train"
  net = conv_mixer(dim, depth, kernel, patch, CLASSES, activation).train(is_training)
  net = net.to(memory_format=memory_format)
  optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.01)
  apply = torch.compile(net) if is_compiled else net
  x = torch.tensor((image / np.float32(255) - np.float32(0.5)) / np.float32(0.25))
  x = x.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
  y = torch.tensor(label, dtype=torch.long)

  def step() -> None:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(apply(x), y).backward()
    optimizer.step()

  def inference() -> None:
    with torch.inference_mode():
      apply(x)

  return step if is_training else inference


def measure(name: str) -> list[dict]:
  """One row for each implementation."""
  *_, batch, size = MODELS[name]
  random = np.random.default_rng(0)
  image = random.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
  label = random.integers(0, CLASSES, batch).astype(np.int32)
  calls = {
    "torch contiguous": torch_call(name, image, label),
    "torch channels_last": torch_call(name, image, label, torch.channels_last),
    "ours": jax_call(name, image, label),
    "ours, taps": jax_call(name, image, label, depthwise="taps"),
  }
  if flags.FLAGS.compile:
    calls["torch compile"] = torch_call(name, image, label, is_compiled=True)
    calls["torch compile, channels_last"] = torch_call(
      name, image, label, torch.channels_last, is_compiled=True
    )
  if flags.FLAGS.plain:
    calls["ours, xla"] = jax_call(name, image, label, depthwise="xla")
  times = rounds.interleaved(calls, flags.FLAGS.rounds)
  return [
    {
      "model": name,
      "implementation": row,
      "images/s": batch / float(np.median(seconds)),
      "ratio": rounds.ratio(times, row),
    }
    for row, seconds in times.items()
  ]


def main(argv: list[str]) -> None:
  """Measures all models and prints the table."""
  del argv
  names = flags.FLAGS.models
  rounds.report(
    f"Whole model, {flags.FLAGS.mode}", [row for name in names for row in measure(name)]
  )


if __name__ == "__main__":
  rounds.define_flags()
  flags.DEFINE_enum("mode", "train", ["train", "inference"], "What to measure.")
  flags.DEFINE_multi_enum("models", list(MODELS), list(MODELS), "Models to measure.")
  flags.DEFINE_bool("compile", False, "Also measure PyTorch with torch.compile.")
  flags.DEFINE_bool("plain", False, "Also measure our model with XLA's own convolution.")
  app.run(main)
