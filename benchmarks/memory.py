"""Peak memory of a train step, from the compiler's own account; nothing is run.

Command, from the repository's root:
  python -m benchmarks.memory [--config=configs/imagenet_1536_20.py] [--batch_size=64]

"plain" is the oracle of the tests: Flax's layers, left to autodiff. The figures are those of
the backend that compiles, CPU or GPU, which is printed with them. The optimiser's state is
counted among the arguments; donated arguments are counted once.
"""

import functools
import pathlib
import time

from absl import app, flags
import jax
import jax.numpy as jnp

from convmixer_jax import config as config_lib
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.inputs import make_augmentation
from convmixer_jax.optim import make_optimizer, make_schedule
from convmixer_jax.state import create_state, make_model
from convmixer_jax.step import train_step
from tests.plain_convmixer import PlainConvMixer


def measure(name: str, model, config) -> None:
  """Prints one line."""
  schedule = make_schedule("onecycle", peak=0.01, epochs=150, steps_per_epoch=2001)
  optimizer = make_optimizer(schedule, weight_decay=2e-5, decay="kernels", clip_norm=1.0)
  size, batch_size = config.data.image_size, flags.FLAGS.batch_size
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  state = jax.eval_shape(
    lambda: create_state(model, optimizer, mesh, seed=0, image_shape=(size, size, 3))
  )
  batch = {
    "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    "mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
  }
  step = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    schedule=schedule,
    augmentation=make_augmentation(config, mesh),
  )
  start = time.perf_counter()
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  total = arguments + temporaries + outputs
  print(
    f"{name}: arguments {arguments / 2**30:.2f} GiB, temporaries {temporaries / 2**30:.2f} GiB, "
    f"peak {total / 2**30:.2f} GiB; compiled in {seconds:.0f} s",
    flush=True,
  )


def main(argv: list[str]) -> None:
  """Both models."""
  del argv
  config = config_lib.read(pathlib.Path(flags.FLAGS.config))
  model = make_model(config, mesh_lib.make_mesh())
  plain = PlainConvMixer(
    model.dim,
    model.depth,
    model.kernel_size,
    model.patch_size,
    model.num_classes,
    model.activation,
    model.dtype,
  )
  print(f"{flags.FLAGS.config}, batch {flags.FLAGS.batch_size}, JAX {jax.__version__}", end=", ")
  print(f"compiled for {jax.devices()[0].device_kind}")
  measure("ours", model, config)
  measure("plain", plain, config)


if __name__ == "__main__":
  flags.DEFINE_string("config", "configs/imagenet_1536_20.py", "Of the model and the optimiser.")
  flags.DEFINE_integer("batch_size", 64, "Images in the step.")
  app.run(main)
