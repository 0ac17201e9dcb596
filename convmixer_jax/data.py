"""Batches of decoded uint8 images, each a pure function of the seed and its number.

There is no iterator state: the position of a run in its data is the number of
the next batch, so a run resumes exactly, with any number of worker processes.
"""

from collections.abc import Iterator
from concurrent import futures
import dataclasses
import functools
import io
import math
import os

from absl import flags
import grain
import numpy as np
import PIL.Image

from convmixer_jax.errors import UserError
from convmixer_jax.source import ArraySource, Source

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """How the host makes images of one size; nothing else has to happen on the host.

  Attributes:
    image_size: side of the result in pixels.
    crop: "none" takes records that have this size; "random_resized" crops at
      random for training, resizes and crops the centre for evaluation.
    scale, ratio: ranges of a random crop's area, and of its width over height.
    eval_fraction: side of the centre crop over the resized short side.
  """

  image_size: int
  crop: str = "none"
  scale: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  eval_fraction: float = 0.96

  def __call__(
    self, image: bytes | np.ndarray, channels: int, rng: np.random.Generator | None
  ) -> np.ndarray:
    """Decodes and crops to uint8 [image_size, image_size, channels], at random if `rng` is given.

    Raises:
      UserError: if the image is damaged, or has another size and is not cropped.
    """
    size = self.image_size
    if isinstance(image, bytes):
      try:
        picture = PIL.Image.open(io.BytesIO(image)).convert("L" if channels == 1 else "RGB")
      except OSError as error:
        raise UserError(f"an image of {len(image)} bytes cannot be decoded: {error}") from None
      if self.crop == "random_resized":
        crop = self._centre if rng is None else functools.partial(self._random, rng)
        picture = crop(picture)
      image = np.asarray(picture).reshape(picture.height, picture.width, channels)
    if image.shape != (size, size, channels):
      raise UserError(
        f"an image has {image.shape[0]}x{image.shape[1]} pixels and {image.shape[2]} channels, but "
        f"config.data.image_size is {size} and the dataset has {channels} channels: set "
        'config.data.image_size, or config.data.crop="random_resized" for images of many sizes'
      )
    return image

  def _random(self, rng: np.random.Generator, image: PIL.Image.Image) -> PIL.Image.Image:
    """RandomResizedCrop by timm's rule (`RandomResizedCropAndInterpolation`)."""
    width, height = image.size
    low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
    for _ in range(10):
      area = rng.uniform(*self.scale) * width * height
      ratio = math.exp(rng.uniform(low, high))
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        break
    else:  # the largest central crop whose ratio is allowed
      w = min(width, round(height * self.ratio[1]))
      h = min(height, round(width / self.ratio[0]))
      left, top = (width - w) // 2, (height - h) // 2
    kernels = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)
    # A crop before the resize, not its `box`: pixels around the box must not leak in.
    cropped = image.crop((left, top, left + w, top + h))
    return cropped.resize((self.image_size, self.image_size), kernels[rng.integers(2)])

  def _centre(self, image: PIL.Image.Image) -> PIL.Image.Image:
    """timm's evaluation: short side to image_size / eval_fraction, bicubic, then the centre."""
    short, size = math.floor(self.image_size / self.eval_fraction), self.image_size
    # Multiplied first: a ratio rounded before would lose a pixel of some long sides.
    w, h = (int(short * side / min(image.size)) for side in image.size)
    left, top = round((w - size) / 2), round((h - size) / 2)  # half to even, as in timm
    resized = image.resize((w, h), PIL.Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


@dataclasses.dataclass(frozen=True)
class Batches:
  """The batches of one split, numbered through all epochs.

  A batch is {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": float32
  [b]}, or, with `index_only`, {"index": int32 [b], "mask"} for images that lie
  on the device; b is this process's share of the global batch.

  Attributes:
    source: the split.
    preprocess: makes images of one size.
    batch_size: of the global batch.
    train: shuffled anew in each epoch, cropped at random. Otherwise in order,
      the last batch padded with examples whose mask is 0.
    seed: of shuffling and crops.
    drop_remainder: in training, leave out an epoch's last, smaller batch.
    process_index, process_count: which share of each batch is made.
    index_only: leave images and labels out.
  """

  source: Source
  preprocess: Preprocess
  batch_size: int
  train: bool
  seed: int = 0
  drop_remainder: bool = True
  process_index: int = 0
  process_count: int = 1
  index_only: bool = False

  def __len__(self) -> int:
    """Batches in an epoch."""
    whole, rest = divmod(len(self.source), self.batch_size)
    return whole + (rest > 0 and not (self.train and self.drop_remainder))

  def indices(self, number: int) -> np.ndarray:
    """The examples of global batch `number`, int [<= batch_size]."""
    epoch, position = divmod(number, len(self))
    rows = slice(position * self.batch_size, (position + 1) * self.batch_size)
    if self.train:
      return _shuffled(len(self.source), self.seed, epoch)[rows]
    return np.arange(len(self.source))[rows]

  def __getitem__(self, number: int) -> Batch:
    indices = self.indices(number)
    size = len(indices) if self.train else self.batch_size
    share = size // self.process_count
    rows = range(self.process_index * share, (self.process_index + 1) * share)
    mine = indices[rows.start : rows.stop]
    batch = (
      {"index": mine.astype(np.int32)} if self.index_only else self._examples(number, rows, mine)
    )
    batch["mask"] = np.ones(len(mine), np.float32)
    missing = share - len(mine)
    return {
      name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x
      for name, x in batch.items()
    }

  def _examples(self, number: int, rows: range, indices: np.ndarray) -> Batch:
    if isinstance(self.source, ArraySource):
      return {"image": self.source.images[indices], "label": self.source.labels[indices]}
    examples = self.source.read(indices)
    size = self.preprocess.image_size
    images = np.empty((len(examples), size, size, self.source.channels), np.uint8)
    for image, row, (encoded, _) in zip(images, rows, examples, strict=False):
      image[:] = self.preprocess(encoded, self.source.channels, self._rng(number, row))
    return {"image": images, "label": np.array([label for _, label in examples], np.int32)}

  def _rng(self, number: int, row: int) -> np.random.Generator | None:
    """What decides the random crop of a row in batch `number`."""
    return np.random.default_rng((self.seed, number, row)) if self.train else None

  def iterate(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Batches `start` to `stop` - 1, made ahead in threads or in `workers` processes.

    The batches are the same for any number of workers.
    """
    numbers = grain.MapDataset.range(start, stop).map(self.__getitem__)
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    batches = numbers.to_iter_dataset(ahead)
    workers = min(workers, os.cpu_count() or 1)
    if workers:
      if not flags.FLAGS.is_parsed():  # Grain's workers take over the flags
        flags.FLAGS.mark_as_parsed()
      batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(batches)
    try:
      yield from iterator
    finally:
      iterator.close()  # ends threads and processes, also when the rest is not wanted


def in_memory(source: Source, preprocess: Preprocess) -> ArraySource:
  """Decodes all examples once; their images have to have the same size.

  Raises:
    UserError: if an image is damaged or has another size.
  """
  if isinstance(source, ArraySource):
    return source

  def decoded(start: int) -> tuple[np.ndarray, list[int]]:
    examples = source.read(range(start, min(start + 256, len(source))))
    images = [preprocess(image, source.channels, None) for image, _ in examples]
    return np.stack(images), [label for _, label in examples]

  with futures.ThreadPoolExecutor() as pool:  # decoding releases Python's lock
    parts = list(pool.map(decoded, range(0, len(source), 256)))
  images = np.concatenate([images for images, _ in parts])
  labels = np.concatenate([labels for _, labels in parts]).astype(np.int32)
  return ArraySource(images, labels, source.class_names)


@functools.lru_cache(maxsize=2)
def _shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(length)
