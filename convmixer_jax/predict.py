"""`convmixer-predict`, or `python -m convmixer_jax.predict`: the most likely classes of images.

  python -m convmixer_jax.predict --init_from=convmixer_768_32 cat.jpg holiday/
  python -m convmixer_jax.predict --init_from=runs/cifar10 --json photos/ > classes.jsonl

Arguments are image files, and directories to search for images; hidden entries are skipped.
Images are preprocessed as in the evaluation that the weights belong to: the run's, also for weights
exported or converted from it, or timm's for released ones. An image that is missing or unreadable
is reported and skipped, and the exit code is then 1.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import json
import logging
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np
import PIL.Image

from convmixer_jax import augment, cli, pretrained
from convmixer_jax.data import class_names
from convmixer_jax.data.datasets import IMAGE_SUFFIXES, images
from convmixer_jax.data.preprocess import Preprocess
from convmixer_jax.errors import UserError
from convmixer_jax.native import xla_cache
from convmixer_jax.pretrained import stablehlo, trained
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

# (variables, normalised images [b, h, w, c]) -> logits [b, classes]
Forward = Callable[[Any, jax.Array], Any]

_log = logging.getLogger(__name__)


class Prediction(NamedTuple):
  """The most likely classes of one file as (name, probability), or what is wrong with it."""

  file: pathlib.Path
  classes: list[tuple[str, float]]
  error: str | None = None


def preprocessing_of(
  weights: TrainedModel, source: str, image_size: int | None = None
) -> Preprocessing:
  """The preprocessing stored with the weights, or ImageNet's, with a warning, if none is stored.

  Args:
    weights: the trained model.
    source: where the weights come from, for messages.
    image_size: side in pixels, to override the stored one.

  Raises:
    UserError: if the image size is not a multiple of the patch size, or if no preprocessing is
      stored and the model does not take three channels.
  """
  found, model = weights.preprocessing, weights.model
  if found is None:
    if weights.channels != 3:
      raise UserError(
        f"--init_from={source} takes images of {weights.channels} channels, and does not say how "
        "they are normalised: give the workdir of the run, or export or convert that again"
      )
    found = trained.imagenet()
    if model.num_classes != len(found.class_names or ()):
      found = dataclasses.replace(found, class_names=None)
    _log.warning(
      "%s does not say how images are preprocessed; assuming ImageNet's preprocessing: %d pixels, "
      "mean %s, std %s. If that is wrong, give the workdir of the run, or export or convert that "
      "again",
      source,
      image_size or found.image_size,
      found.mean,
      found.std,
    )
  size = image_size or found.image_size
  if size % model.patch_size:
    raise UserError(
      f"images of {size} pixels cannot be split into the model's patches of {model.patch_size}: "
      f"set --image_size={max(size // model.patch_size, 1) * model.patch_size}"
    )
  names = found.class_names or tuple(class_names.numbered(model.num_classes))
  return dataclasses.replace(found, image_size=size, class_names=names)


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
  """The files among `paths`, including missing ones, and all images in its directories.

  Hidden files and directories are skipped, unless they are listed in `paths`.

  Raises:
    UserError: if nothing is found.
  """
  found: list[pathlib.Path] = []
  for path in map(pathlib.Path, paths):
    found += images(path) if path.is_dir() else [path]
  if not any(path.exists() for path in found):
    nothing = f"no images ({', '.join(IMAGE_SUFFIXES)}) in {' '.join(paths) or 'no files'}"
    raise UserError("; ".join(f"{path} does not exist" for path in found) or nothing)
  return found


def predict(
  forward: Forward,
  variables: Any,
  preprocessing: Preprocessing,
  files: Sequence[pathlib.Path],
  *,
  batch_size: int = 8,
  top: int = 5,
) -> Iterator[Prediction]:
  """Yields the `top` most likely classes of each file, in the order of `files`.

  Threads decode the next images while the model runs. The last batch is padded, so the model is
  compiled only once, also for later calls with the same `forward`.

  Args:
    forward: a function such as `model.apply`.
    variables: {"params", "batch_stats"}.
    preprocessing: how to preprocess the images, with the class names.
    files: encoded images.
    batch_size: images per forward pass.
    top: number of classes.
  """
  mean, std, size = preprocessing.mean, preprocessing.std, preprocessing.image_size
  names = preprocessing.class_names or ()
  channels, top = len(mean), min(top, len(names))
  # "random_resized" accepts any size; without an rng it takes the centre crop.
  preprocess = Preprocess(size, "random_resized", eval_fraction=preprocessing.crop_fraction)

  def decoded(file: pathlib.Path) -> np.ndarray | str:
    try:
      return preprocess(file.read_bytes(), channels, None)
    except OSError as error:
      return f"cannot be read: {error.strerror}"
    except (UserError, PIL.Image.DecompressionBombError) as error:
      return str(error)

  def predictions(batch: list[tuple[pathlib.Path, np.ndarray | str]], result: Any):
    rows = zip(*jax.device_get(result), strict=True)
    for file, image in batch:
      if isinstance(image, str):
        yield Prediction(file, [], image)
      else:
        values, labels = next(rows)
        likely = [names[label] for label in labels]
        yield Prediction(file, list(zip(likely, map(float, values), strict=True)))

  variables = jax.device_put(variables)
  before: tuple[Any, Any] | None = None
  for batch in _batches(_ahead(decoded, files, 2 * batch_size), batch_size):
    image_bhwc = np.zeros((batch_size, size, size, channels), np.uint8)
    for row, image in enumerate(image for _, image in batch if not isinstance(image, str)):
      image_bhwc[row] = image
    result = _likeliest(variables, image_bhwc, forward=forward, mean=mean, std=std, top=top)
    if before is not None:  # fetch it while the next batch runs
      yield from predictions(*before)
    before = batch, result
  if before is not None:
    yield from predictions(*before)


@functools.partial(jax.jit, static_argnames=("forward", "mean", "std", "top"))
def _likeliest(
  variables: Any,
  image_bhwc: jax.Array,
  *,
  forward: Forward,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  top: int,
) -> tuple[jax.Array, jax.Array]:
  """The `top` highest probabilities and their classes, each [b, top]."""
  logits_bk = forward(variables, augment.normalize(image_bhwc, mean, std))
  return jax.lax.top_k(jax.nn.softmax(logits_bk), top)


def _ahead(function: Any, items: Iterable[Any], count: int) -> Iterator[tuple[Any, Any]]:
  """(item, function(item)) in order, `count` of them computed ahead in threads."""
  with futures.ThreadPoolExecutor() as pool:
    waiting: collections.deque[tuple[Any, futures.Future]] = collections.deque()
    rest = iter(items)
    while True:
      for item in itertools.islice(rest, count - len(waiting)):
        waiting.append((item, pool.submit(function, item)))
      if not waiting:
        return
      item, future = waiting.popleft()
      yield item, future.result()


def _batches(
  pairs: Iterable[tuple[pathlib.Path, np.ndarray | str]], size: int
) -> Iterator[list[tuple[pathlib.Path, np.ndarray | str]]]:
  """Lists with `size` decoded images each, plus any failures; the last may have fewer."""
  batch: list[tuple[pathlib.Path, np.ndarray | str]] = []
  for pair in pairs:
    batch.append(pair)
    if sum(not isinstance(image, str) for _, image in batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def as_table(prediction: Prediction, width: int) -> str:
  """One line per class, the first with the file name in a column of `width` characters."""
  names = [str(prediction.file)] + [""] * (len(prediction.classes) - 1)
  return "\n".join(
    f"{file:{width}}  {probability:7.2%}  {name}"
    for file, (name, probability) in zip(names, prediction.classes, strict=True)
  )


def as_json(prediction: Prediction) -> str:
  """{"file", "classes": [{"name", "probability"}]} on one line."""
  classes = [{"name": name, "probability": p} for name, p in prediction.classes]
  return json.dumps({"file": str(prediction.file), "classes": classes})


def _open(
  source: str, activation: str | None, image_size: int | None
) -> tuple[Forward, Any, Preprocessing]:
  """The model, variables and preprocessing that --init_from refers to."""
  exported = pathlib.Path(source).expanduser()
  if not stablehlo.is_export(exported):
    weights = pretrained.read(source, activation=activation)
    preprocessing = preprocessing_of(weights, source, image_size)
    return weights.model.apply, weights.variables, preprocessing
  call, preprocessing = stablehlo.load(exported)
  if activation or image_size not in (None, preprocessing.image_size):
    raise UserError(
      f"{source} is exported for one activation and images of {preprocessing.image_size} pixels: "
      "drop --activation and --image_size, or export the weights again with them"
    )
  return lambda _, image_bhwc: call(image_bhwc), {}, preprocessing


def main(argv: Sequence[str]) -> None:
  """Prints predictions for the images on the command line."""
  options = flags.FLAGS
  files = find_images(argv[1:])
  xla_cache.use_cache()
  forward, variables, preprocessing = _open(
    options.init_from, options.activation, options.image_size
  )
  width = min(max(len(str(file)) for file in files), 40)
  corrupt = 0
  for prediction in predict(
    forward, variables, preprocessing, files, batch_size=options.batch_size
  ):
    if prediction.error:
      corrupt += 1
      print(f"{prediction.file}: {prediction.error}", file=sys.stderr)
    else:
      print(as_json(prediction) if options.json else as_table(prediction, width), flush=True)
  if corrupt:
    raise UserError(f"{corrupt} of {len(files)} images could not be read, see above")


def run() -> None:
  """Runs the command line."""
  flags.DEFINE_string(
    "init_from",
    None,
    "Weights: a file, a model name, the workdir of a run, or an exported model.",
    required=True,
  )
  cli.define_activation()
  flags.DEFINE_bool("json", False, "Print one JSON object per line.")
  flags.DEFINE_integer("batch_size", 8, "Images per forward pass.", 1)
  flags.DEFINE_integer(
    "image_size", None, "Side in pixels; default: the one stored with the weights.", 1
  )
  cli.run(main)


if __name__ == "__main__":
  run()
