"""`convmixer-export`, or `python -m convmixer_jax.export`: a model for other programs.

  python -m convmixer_jax.export --init_from=convmixer_768_32 --out=768.stablehlo
  python -m convmixer_jax.export --init_from=runs/cifar10 --format=orbax --out=cifar10

Formats:
  stablehlo    one file with the computation and the weights, for CPU, CUDA and TPU, any batch
               size: normalised float32 images [b, h, w, c] -> float32 logits [b, classes]. In
               Python: jax.export.deserialize(bytearray(file.read_bytes())).call(images). No code
               of this project is needed to run it
  safetensors  the weights in timm's layout, for timm.create_model and load_state_dict
  orbax        a directory with the weights as an Orbax checkpoint, and what the model is

How images are preprocessed and what the classes are called goes with the weights, in the terms of
timm's pretrained_cfg: beside a StableHLO file in OUT.json, else in the file or directory itself.

What was written is read again and has to give the logits of the model on random images; otherwise
it is removed.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import logging
import pathlib
import shutil
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import cli, pretrained, storage
from convmixer_jax.errors import UserError
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.native import xla_cache
from convmixer_jax.pretrained import bundle, stablehlo
from convmixer_jax.pretrained.stablehlo import Forward
from convmixer_jax.pretrained.trained import TrainedModel

# Of the logits: absolute where they are small, relative to the greatest one otherwise.
TOLERANCE = 1e-4

_log = logging.getLogger(__name__)


def _stablehlo(path: pathlib.Path, weights: TrainedModel, image_size: int) -> Forward:
  if weights.activation is None:
    raise UserError(
      "StableHLO has the activation in its computation, and the weights do not tell it: give "
      f"--activation={', or --activation='.join(ACTIVATIONS)}"
    )
  model, shape = weights.model, (image_size, image_size, weights.channels)
  path.write_bytes(stablehlo.serialize(model, weights.variables, shape))
  if weights.preprocessing is None:
    _log.warning(
      "%s is not written: the weights do not tell how images are preprocessed",
      stablehlo.notes_of(path),
    )
  else:
    told = dataclasses.replace(weights.preprocessing, image_size=image_size)
    notes = json.dumps(told.to_dict(model.num_classes), indent=2)
    stablehlo.notes_of(path).write_text(notes + "\n")
  return stablehlo.load_computation(path)[0]


def _safetensors(path: pathlib.Path, weights: TrainedModel, image_size: int) -> Forward:
  pretrained.save(path, weights)
  return _again(path, weights)


def _orbax(path: pathlib.Path, weights: TrainedModel, image_size: int) -> Forward:
  bundle.save(path, weights)
  return _again(path, weights)


def _again(path: pathlib.Path, weights: TrainedModel) -> Forward:
  found = pretrained.told(path)
  # An activation that is only assumed was not written.
  return _forward(found.model.clone(activation=weights.model.activation), found.variables)


# Each writes a file or directory, and reads it again as a function of images.
FORMATS: dict[str, Callable[..., Forward]] = {
  "stablehlo": _stablehlo,
  "safetensors": _safetensors,
  "orbax": _orbax,
}


def check_target(out: pathlib.Path, format: str) -> None:
  """Looks whether a file or directory `out` can be written in this format; makes nothing.

  Raises:
    UserError: if `out` exists or cannot be written, the format does not exist, or the name does not
      suit it.
  """
  if format not in FORMATS:
    raise UserError(no_format(format))
  if format == "safetensors" and out.suffix != ".safetensors":
    raise UserError(f"--out={out} has to end in .safetensors")
  storage.check_new(out)
  if format == "stablehlo":
    storage.check_new(stablehlo.notes_of(out))


def export(
  weights: TrainedModel, out: pathlib.Path, format: str, image_size: int | None = None
) -> float:
  """Writes the model, and compares what was written with it.

  Args:
    weights: what to write.
    out: a file, or a directory for "orbax"; it must not exist.
    format: a key of `FORMATS`.
    image_size: side in pixels of the images, to which only "stablehlo" is bound; None for what the
      weights tell, else 224.

  Returns:
    The greatest absolute difference of the logits of two and of three random images.

  Raises:
    UserError: as in `check_target`, or if the difference is too large; nothing is left behind.
  """
  check_target(out, format)
  model, told = weights.model, weights.preprocessing
  size = image_size or (told.image_size if told else 224)
  if size % model.patch_size:
    raise UserError(
      f"images of {size} pixels cannot be cut into the model's patches of {model.patch_size}: set "
      f"--image_size={max(size // model.patch_size, 1) * model.patch_size}"
    )
  shape = (size, size, weights.channels)
  out.parent.mkdir(parents=True, exist_ok=True)
  try:
    written = FORMATS[format](out, weights, size)
    ours = _forward(model, weights.variables)
    return max(difference(ours, written, (b, *shape)) for b in (2, 3))
  except BaseException:
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    if format == "stablehlo":
      stablehlo.notes_of(out).unlink(missing_ok=True)
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
  out = pathlib.Path(options.out).expanduser()
  check_target(out, options.format)  # before the weights are read
  xla_cache.use_cache()
  weights = pretrained.read(options.init_from, activation=options.activation)
  error = export(weights, out, options.format, options.image_size)
  print(f"{out}: the logits differ by at most {error:.2g} from the model's")


def run() -> None:
  """The entry point."""
  flags.DEFINE_string(
    "init_from", None, "Weights: a file, a model's name, or a run's workdir.", required=True
  )
  cli.define_activation()
  flags.DEFINE_string("format", "stablehlo", f"One of {', '.join(FORMATS)}.")
  flags.DEFINE_string("out", None, "File to write, or directory.", required=True)
  flags.DEFINE_integer(
    "image_size", None, "Side in pixels; default that of the weights, or 224.", 1
  )
  cli.run(main)


if __name__ == "__main__":
  run()
