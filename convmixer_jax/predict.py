"""`convmixer-predict`, or `python -m convmixer_jax.predict`: the likeliest classes of images.

  python -m convmixer_jax.predict --init_from=convmixer_768_32 cat.jpg holiday/
  python -m convmixer_jax.predict --init_from=runs/cifar10 --json photos/ > classes.jsonl

Arguments are files of images, and directories that are searched for some; what is hidden in them is
passed over. Images are preprocessed as the weights tell: those of a run, and what was exported or
converted from one, as in its evaluation; released ones as in timm's. An image that is missing or
cannot be read is reported and skipped; the exit code is 1 then.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
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

# A model of normalised images [b, h, w, c] that gives logits [b, classes], after its variables.
Forward = Callable[[Any, jax.Array], Any]

_log = logging.getLogger(__name__)


class Prediction(NamedTuple):
  """Of one file: the likeliest classes as (name, probability), or what is wrong with the image."""

  file: pathlib.Path
  classes: list[tuple[str, float]]
  error: str | None = None


def preprocessing_of(
  weights: TrainedModel, source: str, image_size: int | None = None
) -> Preprocessing:
  """What the weights tell, complete; ImageNet's, with a warning, if they tell nothing.

  Args:
    weights: of the model.
    source: where they are from, for messages.
    image_size: side in pixels, if it is to be another one.

  Raises:
    UserError: if the model's patches do not divide the size, or nothing is told of a model that
      does not see colour images.
  """
  found, model = weights.preprocessing, weights.model
  if found is None:
    if weights.channels != 3:
      raise UserError(
        f"--init_from={source} takes images of {weights.channels} channels, and does not tell how "
        "these are normalised: give the workdir of the run, or export or convert that again"
      )
    found = trained.imagenet()
    if model.num_classes != len(found.class_names or ()):
      found = dataclasses.replace(found, class_names=None)
    _log.warning(
      "%s does not tell how images are preprocessed; ImageNet's way is assumed: %d pixels, mean %s,"
      " std %s. If that is wrong, give the workdir of the run, or export or convert that again",
      source,
      image_size or found.image_size,
      found.mean,
      found.std,
    )
  size = image_size or found.image_size
  if size % model.patch_size:
    raise UserError(
      f"images of {size} pixels cannot be cut into the model's patches of {model.patch_size}: set "
      f"--image_size={max(size // model.patch_size, 1) * model.patch_size}"
    )
  names = found.class_names or tuple(class_names.numbered(model.num_classes))
  return dataclasses.replace(found, image_size=size, class_names=names)


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
  """The files among `paths`, missing ones too, and the images in the directories among them.

  Hidden files and directories are passed over where they are not themselves among `paths`.

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
  """The `top` likeliest classes of each file, in the order of `files`.

  Threads decode the next images while the model works on a batch. It is compiled
  once: the last batch is padded.

  Args:
    forward: such as `model.apply`.
    variables: {"params", "batch_stats"}.
    preprocessing: of the images, with the classes' names.
    files: encoded images.
    batch_size: images that go through the model together.
    top: how many classes.
  """
  mean, std, size = preprocessing.mean, preprocessing.std, preprocessing.image_size
  names = preprocessing.class_names or ()
  channels, top = len(mean), min(top, len(names))
  # All are resized, those of the right size to themselves.
  preprocess = Preprocess(size, "random_resized", eval_fraction=preprocessing.crop_fraction)

  @jax.jit
  def likeliest(variables: Any, image_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_bk = forward(variables, augment.normalize(image_bhwc, mean, std))
    return jax.lax.top_k(jax.nn.softmax(logits_bk), top)

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
    result = likeliest(variables, image_bhwc)
    if before is not None:  # fetched while the next one is under way
      yield from predictions(*before)
    before = batch, result
  if before is not None:
    yield from predictions(*before)


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
  """Lists with `size` images each, besides what could not be decoded; the last may have fewer."""
  batch: list[tuple[pathlib.Path, np.ndarray | str]] = []
  for pair in pairs:
    batch.append(pair)
    if sum(not isinstance(image, str) for _, image in batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def as_table(prediction: Prediction, width: int) -> str:
  """One line for each class, the first with the file's name in a column of `width`."""
  names = [str(prediction.file)] + [""] * (len(prediction.classes) - 1)
  return "\n".join(
    f"{file:{width}}  {probability:7.2%}  {name}"
    for file, (name, probability) in zip(names, prediction.classes, strict=True)
  )


def as_json(prediction: Prediction) -> str:
  """{"file", "classes": [{"name", "probability"}]} in one line."""
  classes = [{"name": name, "probability": p} for name, p in prediction.classes]
  return json.dumps({"file": str(prediction.file), "classes": classes})


def _open(
  source: str, activation: str | None, image_size: int | None
) -> tuple[Forward, Any, Preprocessing]:
  """The model, its variables and the preprocessing of what --init_from names."""
  exported = pathlib.Path(source).expanduser()
  if not stablehlo.is_export(exported):
    weights = pretrained.read(source, activation=activation)
    preprocessing = preprocessing_of(weights, source, image_size)
    return weights.model.apply, weights.variables, preprocessing
  call, preprocessing = stablehlo.load(exported)
  if activation or image_size not in (None, preprocessing.image_size):
    raise UserError(
      f"{source} is a computation, for images of {preprocessing.image_size} pixels: leave "
      "--activation and --image_size out, or export the weights again with them"
    )
  return lambda _, image_bhwc: call(image_bhwc), {}, preprocessing


def main(argv: Sequence[str]) -> None:
  """Predicts as the command line says."""
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
  """The entry point."""
  flags.DEFINE_string(
    "init_from",
    None,
    "Weights: a file, a model's name, a run's workdir, or what export wrote.",
    required=True,
  )
  cli.define_activation()
  flags.DEFINE_bool("json", False, "Print one JSON object a line.")
  flags.DEFINE_integer("batch_size", 8, "Images that go through the model together.", 1)
  flags.DEFINE_integer("image_size", None, "Side in pixels; default that of the weights.", 1)
  cli.run(main)


if __name__ == "__main__":
  run()
