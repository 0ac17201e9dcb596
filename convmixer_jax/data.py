"""Batches of decoded uint8 images, each a pure function of the seed and its number.

There is no iterator state: the position of a run in its data is the number of
the next batch, so a run resumes exactly, with any number of worker processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import os

from absl import flags
import grain
import numpy as np

from convmixer_jax.errors import UserError
from convmixer_jax.preprocess import Preprocess
from convmixer_jax.source import ArraySource, Source

Batch = dict[str, np.ndarray]


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
    generators = (self._rng(number, row) for row in rows)
    images, labels = read(self.source, self.preprocess, indices, generators)
    return {"image": images, "label": labels}

  def _rng(self, number: int, row: int) -> np.random.Generator | None:
    """What decides the random crop of a row in batch `number`."""
    return np.random.default_rng((self.seed, number, row)) if self.train else None

  def iterate(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Batches `start` to `stop` - 1, made ahead in threads or in `workers` processes.

    The batches are the same for any number of workers.
    """
    numbers = grain.MapDataset.range(start, stop).map(self.__getitem__)
    workers = min(workers, os.cpu_count() or 1)
    # One thread keeps a core busy, and a worker is meant for one core.
    ahead = grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=4)
    batches = numbers.to_iter_dataset(ahead)
    if workers:
      if not flags.FLAGS.is_parsed():  # Grain's workers take over the flags
        flags.FLAGS.mark_as_parsed()
      batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(batches)
    try:
      yield from iterator
    finally:
      iterator.close()  # ends threads and processes, also when the rest is not wanted


def read(
  source: Source,
  preprocess: Preprocess,
  indices: Sequence[int] | np.ndarray,
  generators: Iterable[np.random.Generator | None],
) -> tuple[np.ndarray, np.ndarray]:
  """Reads and preprocesses examples: uint8 images [n, h, w, c] and int32 labels [n].

  Args:
    source, preprocess: of the examples.
    indices: their numbers.
    generators: what decides the random crop of each, or None.

  Raises:
    UserError: naming the example that is damaged or has another size.
  """
  examples = source.read(indices)
  size = preprocess.image_size
  images = np.empty((len(examples), size, size, source.channels), np.uint8)
  for image, index, (encoded, _), rng in zip(images, indices, examples, generators, strict=False):
    try:
      image[:] = preprocess(encoded, source.channels, rng)
    except UserError as error:
      raise UserError(f"{source.describe(int(index))}: {error}") from None
  return images, np.array([label for _, label in examples], np.int32)


def in_memory(source: Source, preprocess: Preprocess) -> ArraySource:
  """Decodes all examples once; their images have to have the same size.

  Raises:
    UserError: if an image is damaged or has another size.
  """
  if isinstance(source, ArraySource):
    return source

  def decoded(start: int) -> tuple[np.ndarray, np.ndarray]:
    indices = range(start, min(start + 256, len(source)))
    return read(source, preprocess, indices, itertools.repeat(None))

  with futures.ThreadPoolExecutor() as pool:  # decoding releases Python's lock
    parts = list(pool.map(decoded, range(0, len(source), 256)))
  images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
  return ArraySource(images, labels, source.class_names)


@functools.lru_cache(maxsize=2)
def _shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(length)
