"""Peak memory of a train step, as the compiler reports it, and compile time; runs no step.

Run from the repository's root:
  python -m benchmarks.memory [--config=configs/imagenet_1536_20.py] [--batch_size=64]
    [--rows=plain,none,scan,activations,blocks]

"plain" is the tests' reference model: Flax's layers and autodiff. The others are our model with
`config.parallel.scan`, or with this `config.parallel.remat`. The figures are for the backend that
compiles, CPU or GPU, which is printed with them. The batch is one group of BatchNorm and Mixup. The
arguments include the optimizer's state; donated arguments are counted once.
"""

import pathlib
import time

from absl import app, flags
import jax
from ml_collections import config_dict

from convmixer_jax import config as config_lib
from convmixer_jax.aot.lowered import lower_train_step
from convmixer_jax.model.scan import REMATS
from convmixer_jax.parallel import sharding
from convmixer_jax.training.build import make_model
from tests.plain_convmixer import PlainConvMixer

ROWS = ("plain", "none", "scan", "activations", "blocks")


def measure(name: str, config: config_dict.ConfigDict) -> None:
  """Prints one row of a Markdown table."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  config.parallel.update(remat=name if name in REMATS else "none", scan=name == "scan")
  model = make_model(config, mesh)
  if name == "plain":
    names = ("dim", "depth", "kernel_size", "patch_size", "num_classes", "activation", "dtype")
    model = PlainConvMixer(*(getattr(model, name) for name in names))
  start = time.perf_counter()
  lowered, _ = lower_train_step(config, mesh, model)
  lowered_at = time.perf_counter()
  compiled = lowered.compile()
  end = time.perf_counter()
  memory = compiled.memory_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  sizes = (arguments, temporaries, arguments + temporaries + outputs)
  print(
    f"| {name} | {' | '.join(f'{size / 2**30:.2f} GiB' for size in sizes)} "
    f"| {lowered_at - start:.1f} | {end - lowered_at:.1f} |",
    flush=True,
  )


def main(argv: list[str]) -> None:
  """Prints all rows."""
  del argv
  arguments = flags.FLAGS
  print(
    f"{arguments.config}, batch {arguments.batch_size}, JAX {jax.__version__}, compiled for "
    f"{jax.devices()[0].device_kind}\n\n"
    "| | arguments | temporaries | peak | lowered in, s | compiled in, s |\n" + "|---" * 6 + "|"
  )
  for name in arguments.rows:
    config = config_lib.read(pathlib.Path(arguments.config))
    config.data.batch_size = config.data.group_size = arguments.batch_size
    measure(name, config)


if __name__ == "__main__":
  flags.DEFINE_string("config", "configs/imagenet_1536_20.py", "Of model and optimizer.")
  flags.DEFINE_integer("batch_size", 64, "Images in the step.")
  flags.DEFINE_list("rows", list(ROWS), f"Rows to print, of {', '.join(ROWS)}.")
  app.run(main)
