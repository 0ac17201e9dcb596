"""The command `python -m convmixer_jax.predict`: the likeliest classes of images.

  python -m convmixer_jax.predict --init_from=convmixer_768_32 cat.jpg holiday/
  python -m convmixer_jax.predict --init_from=runs/cifar10 --json photos/ > classes.jsonl

Arguments are files of images, and directories that are searched for some. Images are resized and
cropped as in the evaluation of the run --init_from, or as in timm's of the released weights. An
image that cannot be read is reported and skipped; the exit code is 1 then.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import itertools
import json
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np
import PIL.Image

from convmixer_jax import augment, class_names, command, compiling, pretrained, storage
from convmixer_jax import config as config_lib
from convmixer_jax.depthwise import native
from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer, default_layout
from convmixer_jax.preprocess import Preprocess
from convmixer_jax.source import IMAGE_SUFFIXES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Prediction(NamedTuple):
  """Of one file: the likeliest classes as (name, probability), or what is wrong with the image."""

  file: pathlib.Path
  classes: list[tuple[str, float]]
  error: str | None = None


@dataclasses.dataclass(frozen=True)
class View:
  """How images are shown to a model, and what its answers are called.

  Attributes:
    preprocess: makes uint8 images of one size.
    mean, std: of each channel, as fractions of 255.
    names: of the classes.
  """

  preprocess: Preprocess
  mean: tuple[float, ...]
  std: tuple[float, ...]
  names: Sequence[str]


def view_of(source: str, model: ConvMixer, channels: int, image_size: int | None = None) -> View:
  """The view of the run whose workdir `source` is, or of released weights: ImageNet's, 224 pixels.

  Args:
    source: where `model` is from, see `pretrained.load`.
    model: its patches decide which sizes are possible.
    channels: of its images.
    image_size: side in pixels, if it is to be another one.

  Raises:
    UserError: if the model's patches do not divide the size, or it does not see colour images
      and is not a run's.
  """
  file = storage.path_of(source) / "config.json"
  if file.is_file():
    config = config_lib.read_json(file)
    size = image_size or config.data.image_size
    # Without a crop all images of the run have one size; others are resized as a whole.
    is_cropped = config.data.crop == "random_resized"
    fraction = config.data.eval_crop_fraction if is_cropped else 1.0
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    names = class_names.of_run(config)
  elif channels == 3:
    size, fraction, mean, std = image_size or 224, 0.96, IMAGENET_MEAN, IMAGENET_STD
    names = class_names.of_weights(model.num_classes)
  else:
    raise UserError(
      f"--init_from={source} takes images of {channels} channels: only the workdir of a run tells "
      "how these are normalised"
    )
  if size % model.patch_size:
    raise UserError(
      f"images of {size} pixels cannot be cut into the model's patches of {model.patch_size}: set "
      f"--image_size={max(size // model.patch_size, 1) * model.patch_size}"
    )
  return View(Preprocess(size, "random_resized", eval_fraction=fraction), mean, std, names)


def find_images(paths: Iterable[str]) -> list[pathlib.Path]:
  """The files among `paths`, and the images in the directories among them.

  Raises:
    UserError: if a path does not exist, or nothing is found.
  """
  found: list[pathlib.Path] = []
  for path in map(pathlib.Path, paths):
    if not path.exists():
      raise UserError(f"{path} does not exist")
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    found += [p for p in inside if p == path or p.suffix.lower() in IMAGE_SUFFIXES]
  if not found:
    raise UserError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {' '.join(paths) or 'no files'}")
  return found


def predict(
  model: ConvMixer,
  variables: Any,
  view: View,
  files: Sequence[pathlib.Path],
  *,
  batch_size: int = 8,
  top: int = 5,
) -> Iterator[Prediction]:
  """The `top` likeliest classes of each file, in the order of `files`.

  Threads decode the next images while the model works on a batch. It is compiled
  once: the last batch is padded. On CPU, where the model leaves it open, the
  convolution is the native one if there is a C++ compiler.

  Args:
    model: with a head of `len(view.names)` classes.
    variables: {"params", "batch_stats"}.
    view: of the images.
    files: encoded images.
    batch_size: images that go through the model together.
    top: how many classes.
  """
  channels, top = len(view.mean), min(top, model.num_classes)
  platform, depthwise = jax.default_backend(), model.depthwise
  if depthwise is None and platform == "cpu" and native.is_available():
    depthwise = "native"
  model = model.clone(depthwise=depthwise, layout=default_layout(platform, depthwise))

  @jax.jit
  def likeliest(variables: Any, image_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_bk: Any = model.apply(variables, augment.normalize(image_bhwc, view.mean, view.std))
    return jax.lax.top_k(jax.nn.softmax(logits_bk), top)

  def decoded(file: pathlib.Path) -> np.ndarray | str:
    try:
      return view.preprocess(file.read_bytes(), channels, None)
    except (UserError, OSError, PIL.Image.DecompressionBombError) as error:
      return str(error)

  def predictions(batch: list[tuple[pathlib.Path, np.ndarray | str]], result: Any):
    rows = zip(*jax.device_get(result), strict=True)
    for file, image in batch:
      if isinstance(image, str):
        yield Prediction(file, [], image)
      else:
        values, labels = next(rows)
        names = [view.names[label] for label in labels]
        yield Prediction(file, list(zip(names, map(float, values), strict=True)))

  variables = jax.device_put(variables)
  size = view.preprocess.image_size
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


def main(argv: Sequence[str]) -> None:
  """Predicts as the command line says."""
  options = flags.FLAGS
  files = find_images(argv[1:])
  compiling.use_cache()
  model, variables = pretrained.load(options.init_from, activation=options.activation)
  channels = variables["params"]["stem"]["kernel"].shape[2]
  view = view_of(options.init_from, model, channels, options.image_size)
  width = min(max(len(str(file)) for file in files), 40)
  damaged = 0
  for prediction in predict(model, variables, view, files, batch_size=options.batch_size):
    if prediction.error:
      damaged += 1
      print(f"{prediction.file}: {prediction.error}", file=sys.stderr)
    else:
      print(as_json(prediction) if options.json else as_table(prediction, width), flush=True)
  if damaged:
    raise UserError(f"{damaged} of {len(files)} images could not be read, see above")


def run() -> None:
  """The entry point."""
  flags.DEFINE_string(
    "init_from", None, "Weights: a file, a model's name, or a run's workdir.", required=True
  )
  command.define_activation()
  flags.DEFINE_bool("json", False, "Print one JSON object a line.")
  flags.DEFINE_integer("batch_size", 8, "Images that go through the model together.", 1)
  flags.DEFINE_integer("image_size", None, "Side in pixels; default that of the run, or 224.", 1)
  command.run(main)


if __name__ == "__main__":
  run()
