"""`convmixer-export`, or `python -m convmixer_jax.export`: export a model to StableHLO.

  python -m convmixer_jax.export --init_from=convmixer_768_32 --out=768.stablehlo

The file holds the computation and the weights, for CPU, CUDA and TPU and any batch size:
normalised float32 images [b, h, w, c] -> float32 logits [b, classes]. In Python:
jax.export.deserialize(bytearray(file.read_bytes())).call(images). Running it does not need this
project.

The preprocessing and the class names are written next to it, to OUT.json, in the format of timm's
pretrained_cfg.

The export is then loaded and compared with the model on random images. If the logits differ, it is
removed. To write weights only, use convmixer_jax.convert.
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

# Tolerance on the logits: absolute if all are below 1, else relative to the largest.
TOLERANCE = 1e-4

_log = logging.getLogger(__name__)


def check_target(out: pathlib.Path) -> None:
  """Checks that `out` and its JSON file can be written; creates nothing.

  Raises:
    UserError: if either exists or cannot be written, or if the suffix is that of another format.
  """
  if out.suffix in (".safetensors", ".onnx"):
    raise UserError(
      f"--out={out}: the output format is StableHLO. For timm, run python -m "
      "convmixer_jax.convert WEIGHTS FILE.safetensors; for ONNX, convert that file as docs/use.md "
      "shows"
    )
  storage.check_new(out)
  storage.check_new(stablehlo.notes_of(out))


def export(weights: TrainedModel, out: pathlib.Path, image_size: int | None = None) -> float:
  """Writes the model, and compares the written file with it.

  Args:
    weights: the model to export.
    out: a file that must not exist.
    image_size: side of the images in pixels; default: the one stored with the weights, else 224.

  Returns:
    The largest absolute difference of the logits, over batches of two and three random images.

  Raises:
    UserError: as in `check_target`, if the activation is unknown, or if the difference is too
      large; nothing is left behind.
  """
  check_target(out)
  if weights.activation is None:
    raise UserError(
      "StableHLO includes the activation, and the weights do not state it: give "
      f"--activation={', or --activation='.join(ACTIVATIONS)}"
    )
  model, told = weights.model, weights.preprocessing
  size = image_size or (told.image_size if told else 224)
  if size % model.patch_size:
    raise UserError(
      f"images of {size} pixels cannot be split into the model's patches of {model.patch_size}: "
      f"set --image_size={max(size // model.patch_size, 1) * model.patch_size}"
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
    _log.warning("%s is not written: the weights do not say how images are preprocessed", notes)
    return
  told = dataclasses.replace(weights.preprocessing, image_size=shape[0])
  notes.write_text(json.dumps(told.to_dict(weights.model.num_classes), indent=2) + "\n")


def difference(ours: Forward, theirs: Forward, image_shape: tuple[int, ...]) -> float:
  """Largest absolute difference of two models' logits on random images of this shape.

  Raises:
    UserError: if it exceeds `TOLERANCE`, times the largest logit where that exceeds 1.
  """
  image_bhwc = jnp.asarray(np.random.default_rng(0).standard_normal(image_shape, np.float32))
  expected, found = np.asarray(ours(image_bhwc)), np.asarray(theirs(image_bhwc))
  if expected.shape != found.shape:
    raise UserError(f"the export gives logits {found.shape}, the model {expected.shape}")
  error = float(np.abs(expected - found).max())
  allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
  if not error <= allowed:  # also catches NaN
    raise UserError(
      f"the export's logits differ by {error:.3g} from the model's; allowed: {allowed:.3g}"
    )
  return error


def main(argv: Sequence[str]) -> None:
  """Exports the model that the flags select."""
  options = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag: flags begin with --")
  out = pathlib.Path(options.out).expanduser()
  check_target(out)  # fail before the weights are read
  xla_cache.use_cache()
  weights = pretrained.read(options.init_from, activation=options.activation)
  error = export(weights, out, options.image_size)
  print(f"{out}: the logits differ by at most {error:.2g} from the model's")


def run() -> None:
  """Runs the command line."""
  flags.DEFINE_string(
    "init_from", None, "Weights: a file, a model name, or the workdir of a run.", required=True
  )
  cli.define_activation()
  flags.DEFINE_string("out", None, "File to write.", required=True)
  flags.DEFINE_integer(
    "image_size", None, "Side in pixels; default: the one stored with the weights, or 224.", 1
  )
  cli.run(main)


if __name__ == "__main__":
  run()
