"""`convmixer-export`, or `python -m convmixer_jax.export`: a model for other programs.

  python -m convmixer_jax.export --init_from=convmixer_768_32 --out=768.stablehlo

StableHLO: one file with the computation and the weights, for CPU, CUDA and TPU, any batch size:
normalised float32 images [b, h, w, c] -> float32 logits [b, classes]. In Python:
jax.export.deserialize(bytearray(file.read_bytes())).call(images). No code of this project is needed
to run it.

How images are preprocessed and what the classes are called lies beside it in OUT.json, in the terms
of timm's pretrained_cfg.

What was written is read again and has to give the logits of the model on random images; otherwise
it is removed. Weights alone are written by convmixer_jax.convert.
"""

from collections.abc import Sequence
import dataclasses
import json
import logging
import pathlib

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from convmixer_jax import cli, pretrained, storage
from convmixer_jax.errors import UserError
from convmixer_jax.model.act_norm import ACTIVATIONS
from convmixer_jax.native import xla_cache
from convmixer_jax.pretrained import stablehlo
from convmixer_jax.pretrained.stablehlo import Forward
from convmixer_jax.pretrained.trained import TrainedModel

# Of the logits: absolute where they are small, relative to the greatest one otherwise.
TOLERANCE = 1e-4

_log = logging.getLogger(__name__)


def check_target(out: pathlib.Path) -> None:
  """Looks whether the file `out` and the one beside it can be written; makes nothing.

  Raises:
    UserError: if one of them exists or cannot be written, or the name is that of another format.
  """
  if out.suffix in (".safetensors", ".onnx"):
    raise UserError(
      f"--out={out}: what is written is StableHLO. Weights for timm come from python -m "
      "convmixer_jax.convert WEIGHTS FILE.safetensors, and ONNX from these; docs/use.md has the "
      "lines"
    )
  storage.check_new(out)
  storage.check_new(stablehlo.notes_of(out))


def export(weights: TrainedModel, out: pathlib.Path, image_size: int | None = None) -> float:
  """Writes the model, and compares what was written with it.

  Args:
    weights: what to write.
    out: a file that must not exist.
    image_size: side in pixels of the images; None for what the weights tell, else 224.

  Returns:
    The greatest absolute difference of the logits of two and of three random images.

  Raises:
    UserError: as in `check_target`, if the weights do not tell their activation, or if the
      difference is too large; nothing is left behind.
  """
  check_target(out)
  if weights.activation is None:
    raise UserError(
      "StableHLO has the activation in its computation, and the weights do not tell it: give "
      f"--activation={', or --activation='.join(ACTIVATIONS)}"
    )
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
    _write(weights, out, shape)
    written, _, _ = stablehlo.load_computation(out)
    ours = jax.jit(lambda image_bhwc: model.apply(weights.variables, image_bhwc))
    return max(difference(ours, written, (b, *shape)) for b in (2, 3))
  except BaseException:
    out.unlink(missing_ok=True)
    stablehlo.notes_of(out).unlink(missing_ok=True)
    raise


def _write(weights: TrainedModel, out: pathlib.Path, shape: tuple[int, int, int]) -> None:
  out.write_bytes(stablehlo.serialize(weights.model, weights.variables, shape))
  notes = stablehlo.notes_of(out)
  if weights.preprocessing is None:
    _log.warning("%s is not written: the weights do not tell how images are preprocessed", notes)
    return
  told = dataclasses.replace(weights.preprocessing, image_size=shape[0])
  notes.write_text(json.dumps(told.to_dict(weights.model.num_classes), indent=2) + "\n")


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


def main(argv: Sequence[str]) -> None:
  """Exports as the flags say."""
  options = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag: flags begin with --")
  out = pathlib.Path(options.out).expanduser()
  check_target(out)  # before the weights are read
  xla_cache.use_cache()
  weights = pretrained.read(options.init_from, activation=options.activation)
  error = export(weights, out, options.image_size)
  print(f"{out}: the logits differ by at most {error:.2g} from the model's")


def run() -> None:
  """The entry point."""
  flags.DEFINE_string(
    "init_from", None, "Weights: a file, a model's name, or a run's workdir.", required=True
  )
  cli.define_activation()
  flags.DEFINE_string("out", None, "File to write.", required=True)
  flags.DEFINE_integer(
    "image_size", None, "Side in pixels; default that of the weights, or 224.", 1
  )
  cli.run(main)


if __name__ == "__main__":
  run()
