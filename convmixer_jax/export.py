"""The command `python -m convmixer_jax.export`: a model for other programs.

  python -m convmixer_jax.export --init_from=convmixer_768_32 --out=768.stablehlo
  python -m convmixer_jax.export --init_from=runs/cifar10 --format=orbax --out=cifar10

Formats:
  stablehlo    one file with the computation and the weights, for CPU, CUDA and TPU, any batch
               size: normalised float32 images [b, h, w, c] -> float32 logits [b, classes]. In
               Python: jax.export.deserialize(bytearray(file.read_bytes())).call(images). No code
               of this project is needed to run it
  safetensors  the weights in timm's layout, for timm.create_model and load_state_dict
  orbax        a directory with the weights as an Orbax checkpoint, and what the model is

What was written is read again and has to give the logits of the model on random images; otherwise
it is removed.
"""

from collections.abc import Callable, Sequence
import pathlib
import shutil
from typing import Any

from absl import flags
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import bundle, command, compiling, pretrained, storage
from convmixer_jax import config as config_lib
from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer

# Of the logits: absolute where they are small, relative to the greatest one otherwise.
TOLERANCE = 1e-4

Forward = Callable[[jax.Array], jax.Array]


def to_stablehlo(model: ConvMixer, variables: Any, image_shape: tuple[int, int, int]) -> bytes:
  """The evaluation of a model as a serialised `jax.export.Exported`, its weights included.

  Args:
    model: exported with the convolution and layout that are fastest on each platform.
    variables: {"params", "batch_stats"}.
    image_shape: (height, width, channels); the batch is of any size.

  Raises:
    UserError: if the package flatbuffers is missing.
  """
  # Named, since what `None` picks may be a kernel that only this project can load.
  on_cpu = model.clone(layout="cbhw", depthwise="taps")
  elsewhere = model.clone(layout="bhwc", depthwise="xla")
  variables = jax.tree.map(
    np.asarray, {name: variables[name] for name in ("params", "batch_stats")}
  )

  def forward(image_bhwc: jax.Array) -> jax.Array:
    return lax.platform_dependent(variables, image_bhwc, cpu=on_cpu.apply, default=elsewhere.apply)

  (batch,) = jax.export.symbolic_shape("b")
  image = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
  exported = jax.export.export(jax.jit(forward), platforms=["cpu", "cuda", "tpu"])(image)
  try:
    return bytes(exported.serialize())
  except ImportError as error:  # JAX imports flatbuffers, which it does not depend on, only here
    raise UserError(f"StableHLO needs a package: pip install flatbuffers ({error})") from None


def _stablehlo(path: pathlib.Path, model: ConvMixer, variables: Any, shape: Any) -> Forward:
  path.write_bytes(to_stablehlo(model, variables, shape))
  return jax.export.deserialize(bytearray(path.read_bytes())).call


def _safetensors(path: pathlib.Path, model: ConvMixer, variables: Any, shape: Any) -> Forward:
  pretrained.save_torch(path, model, variables)
  return _forward(*pretrained.load_torch(path))


def _orbax(path: pathlib.Path, model: ConvMixer, variables: Any, shape: Any) -> Forward:
  bundle.save(path, model, variables)
  return _forward(*bundle.load(path))


# Each writes a file or directory, and reads it again as a function of images.
FORMATS: dict[str, Callable[..., Forward]] = {
  "stablehlo": _stablehlo,
  "safetensors": _safetensors,
  "orbax": _orbax,
}


def export(
  model: ConvMixer, variables: Any, out: pathlib.Path, format: str, image_size: int
) -> float:
  """Writes the model, and compares what was written with it.

  Args:
    model: what to write.
    variables: {"params", "batch_stats"}.
    out: a file, or a directory for "orbax"; it must not exist.
    format: a key of `FORMATS`.
    image_size: side in pixels of the images; only "stablehlo" is bound to it.

  Returns:
    The greatest absolute difference of the logits of two and of three random images.

  Raises:
    UserError: if `out` exists, the format does not, or the difference is too large;
      nothing is left behind.
  """
  if format not in FORMATS:
    raise UserError(no_format(format))
  if out.exists():
    raise UserError(f"--out={out} exists already")
  if format == "safetensors" and out.suffix != ".safetensors":
    raise UserError(f"--out={out} has to end in .safetensors")
  if image_size % model.patch_size:
    raise UserError(
      f"images of {image_size} pixels cannot be cut into the model's patches of {model.patch_size}"
    )
  shape = (image_size, image_size, variables["params"]["stem"]["kernel"].shape[2])
  out.parent.mkdir(parents=True, exist_ok=True)
  try:
    written = FORMATS[format](out, model, variables, shape)
    return max(difference(_forward(model, variables), written, (b, *shape)) for b in (2, 3))
  except BaseException:
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    raise


def difference(ours: Forward, theirs: Forward, image_shape: tuple[int, ...]) -> float:
  """Greatest absolute difference of two models' logits on random images of this shape.

  Raises:
    UserError: if it is over `TOLERANCE`, for logits over 1 times the greatest of them.
  """
  image_bhwc = jnp.asarray(np.random.default_rng(0).standard_normal(image_shape, np.float32))
  expected, found = np.asarray(ours(image_bhwc)), np.asarray(theirs(image_bhwc))
  if expected.shape != found.shape:
    raise UserError(f"the export gives {found.shape} logits, and the model {expected.shape}")
  error = float(np.abs(expected - found).max())
  allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
  if not error <= allowed:  # nor is NaN
    raise UserError(
      f"the export's logits differ by {error:.3g} from the model's: over {allowed:.3g}"
    )
  return error


def no_format(format: str) -> str:
  """Why there is no such format, and what to do."""
  if format == "onnx":
    return (
      "--format=onnx is not offered: the exporter from JAX, jax2onnx, needs an Orbax that is older "
      "than this project's. Export --format=safetensors, load that into timm's model of the same "
      "name, and use torch.onnx.export; docs/use.md has the lines"
    )
  return f"--format={format} does not exist; allowed: {', '.join(FORMATS)}"


def _forward(model: ConvMixer, variables: Any) -> Forward:
  return jax.jit(lambda image_bhwc: model.apply(variables, image_bhwc))


def main(argv: Sequence[str]) -> None:
  """Exports as the flags say."""
  options = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag: flags begin with --")
  if options.format not in FORMATS:
    raise UserError(no_format(options.format))  # before the weights are read
  out = pathlib.Path(options.out).expanduser()
  compiling.use_cache()
  model, variables = pretrained.load(options.init_from, activation=options.activation)
  run = storage.path_of(options.init_from) / "config.json"
  size = options.image_size or (config_lib.read_json(run).data.image_size if run.is_file() else 224)
  error = export(model, variables, out, options.format, size)
  print(f"{out}: the logits differ by at most {error:.2g} from the model's")


def run() -> None:
  """The entry point."""
  flags.DEFINE_string(
    "init_from", None, "Weights: a file, a model's name, or a run's workdir.", required=True
  )
  command.define_activation()
  flags.DEFINE_string("format", "stablehlo", f"One of {', '.join(FORMATS)}.")
  flags.DEFINE_string("out", None, "File to write, or directory.", required=True)
  flags.DEFINE_integer("image_size", None, "Side in pixels; default that of the run, or 224.", 1)
  command.run(main)


if __name__ == "__main__":
  run()
