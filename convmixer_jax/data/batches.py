"""Batches of decoded uint8 images. Each is a pure function of the seed and the batch number.

There is no iterator state. The position in the data is the number of the next
batch, so a run resumes exactly, with any number of worker processes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import logging
import os
from types import MappingProxyType

from absl import flags
import numpy as np

from convmixer_jax.data.corrupt import CorruptExamples
from convmixer_jax.data.datasets import ArraySource, Source
from convmixer_jax.data.preprocess import Preprocess
from convmixer_jax.errors import CorruptError, UserError, needs

_log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_WORKER_DIED = "Worker process was terminated unexpectedly"  # Grain's message
_ATTEMPTS = 4  # to run the workers, in one call of `iterate`


@dataclasses.dataclass(frozen=True)
class Batches:
  """The batches of one split, numbered through all epochs.

  A batch is {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": float32 [b]}.
  With `index_only` it is {"index": int32 [b], "mask"}, for images that are stored on
  the device. b is this process's share of the global batch.

  In training, a corrupt example is replaced by another one, drawn from the seed, the
  batch number and the row. In evaluation, its mask is 0.

  Attributes:
    source: the split.
    preprocess: decodes and crops the images to one size.
    batch_size: size of the global batch.
    train: if true, reshuffle every epoch and crop at random. Otherwise keep the order,
      and pad the last batch with examples whose mask is 0.
    seed: seed of shuffling and crops.
    drop_remainder: in training, drop the last, smaller batch of an epoch.
    process_index, process_count: which share of each batch to build.
    index_only: omit images and labels.
    corrupt_examples: the corrupt examples found so far.
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
  corrupt_examples: CorruptExamples = dataclasses.field(
    default_factory=CorruptExamples, compare=False
  )

  def __len__(self) -> int:
    """The number of batches in an epoch."""
    whole, rest = divmod(len(self.source), self.batch_size)
    return whole + (rest > 0 and not (self.train and self.drop_remainder))

  def indices(self, number: int) -> np.ndarray:
    """The indices of the examples in global batch `number`, int [<= batch_size]."""
    epoch, position = divmod(number, len(self))
    rows = slice(position * self.batch_size, (position + 1) * self.batch_size)
    if self.train:
      return _shuffled(len(self.source), self.seed, epoch)[rows]
    return np.arange(len(self.source))[rows]

  def __getitem__(self, number: int) -> Batch:
    return self._make(number)[0]

  def readable(self) -> np.ndarray:
    """The indices of the examples not known to be corrupt, int [<= len(source)]."""
    return np.setdiff1d(np.arange(len(self.source)), list(self.corrupt_examples.reasons))

  def _make(self, number: int) -> tuple[Batch, dict[int, str]]:
    """A batch, and the corrupt examples found while building it, with the reasons.

    Raises:
      UserError: if there are too many.
    """
    indices = self.indices(number)
    size = len(indices) if self.train else self.batch_size
    share = size // self.process_count
    rows = range(self.process_index * share, (self.process_index + 1) * share)
    mine = indices[rows.start : rows.stop].copy()  # the permutation is cached
    corrupt: dict[int, str] = {}
    draws: dict[int, np.random.Generator] = {}
    while True:
      batch, found = self._examples(number, rows, mine)
      corrupt |= found
      self.corrupt_examples.check(corrupt)
      if not (self.train and found):
        break
      if len(corrupt) == len(self.source):
        raise UserError(f"all {len(corrupt)} examples are corrupt: {next(iter(corrupt.values()))}")
      for place in np.flatnonzero(batch["mask"] == 0):  # replace the corrupt ones and read again
        row = rows[place]
        draw = draws.setdefault(row, np.random.default_rng((self.seed, number, row, 1)))
        mine[place] = draw.integers(len(self.source), size=1)[0]
    if missing := share - len(mine):
      for name, x in batch.items():
        batch[name] = np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return batch, corrupt

  def _examples(
    self, number: int, rows: range, indices: np.ndarray
  ) -> tuple[Batch, dict[int, str]]:
    """A batch of these examples, and the corrupt ones, whose mask is 0."""
    known = self.corrupt_examples.reasons
    corrupt = {index: known[index] for index in indices.tolist() if index in known}
    if self.index_only:
      batch = {"index": indices.astype(np.int32)}
    elif isinstance(self.source, ArraySource) and self.preprocess.crop == "none":
      batch = {"image": self.source.images[indices], "label": self.source.labels[indices]}
    else:
      generators = (self._rng(number, row) for row in rows)
      images, labels, corrupt = read(self.source, self.preprocess, indices, generators, known)
      batch = {"image": images, "label": labels}
    batch["mask"] = np.array([index not in corrupt for index in indices.tolist()], np.float32)
    return batch, corrupt

  def _rng(self, number: int, row: int) -> np.random.Generator | None:
    """The generator of the random crop of one row in batch `number`; None in evaluation."""
    return np.random.default_rng((self.seed, number, row)) if self.train else None

  def iterate(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Yields batches `start` to `stop` - 1, prefetched in threads or in `workers` processes.

    The batches do not depend on the number of workers. If a worker is killed, all
    are restarted, up to three times, and the batches stay the same.

    Raises:
      UserError: if too many examples are corrupt, or workers are killed too often.
    """
    for attempt in itertools.count(1):
      try:
        for batch, corrupt in self._ahead(start, stop, workers):
          self.corrupt_examples.note(corrupt)
          start += 1
          yield batch
        return
      except RuntimeError as error:
        if not workers or _WORKER_DIED not in str(error):
          raise
        reason = f"a data worker died before batch {start}: {error}"
        if attempt == _ATTEMPTS:
          raise UserError(
            f"{reason} This is the {attempt}th time. If memory ran out, lower config.run.workers "
            "or set it to 0, and re-run the command: it resumes from the latest checkpoint"
          ) from None
        _log.warning("%s Restarting the workers", reason)

  def _ahead(self, start: int, stop: int, workers: int) -> Iterator[tuple[Batch, dict[int, str]]]:
    with needs("train"):
      import grain  # here because it is slow to import

    numbers = grain.MapDataset.range(start, stop).map(self._make)
    workers = min(workers, os.cpu_count() or 1)
    # One thread keeps a core busy, and each worker gets one core.
    ahead = grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=4)
    batches = numbers.to_iter_dataset(ahead)
    if workers:
      if not flags.FLAGS.is_parsed():  # Grain passes the parsed flags to its workers
        flags.FLAGS.mark_as_parsed()
      batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(batches)
    try:
      yield from iterator
    finally:
      iterator.close()  # stops threads and processes, also after an early exit


def read(
  source: Source,
  preprocess: Preprocess,
  indices: Sequence[int] | np.ndarray,
  generators: Iterable[np.random.Generator | None],
  known: Mapping[int, str] = MappingProxyType({}),
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
  """Reads and preprocesses examples.

  Args:
    source, preprocess: where the examples come from, and how to decode them.
    indices: which examples.
    generators: for each example the generator of its random crop, or None.
    known: corrupt examples of the source, with the reasons.

  Returns:
    uint8 images [n, h, w, c], int32 labels [n], and the corrupt examples, already known or new,
    with the reasons. Their images and labels are 0.

  Raises:
    UserError: naming an example of the wrong size.
  """
  numbers = [int(index) for index in indices]
  size = preprocess.image_size
  images = np.zeros((len(numbers), size, size, source.channels), np.uint8)
  labels = np.zeros(len(numbers), np.int32)
  corrupt = {index: known[index] for index in numbers if index in known}
  sound = [index for index in numbers if index not in corrupt]
  try:
    examples = dict(zip(sound, source.read(sound), strict=True))
  except CorruptError:  # read one by one below, to find the corrupt ones
    examples = {}
  for place, (index, rng) in enumerate(zip(numbers, generators, strict=False)):
    if index in corrupt:
      continue
    try:
      encoded, label = examples.get(index) or source.read([index])[0]
      images[place], labels[place] = preprocess(encoded, source.channels, rng), label
    except UserError as error:
      message = f"{source.describe(index)}: {error}"
      if not isinstance(error, CorruptError):
        raise UserError(message) from None
      corrupt[index] = message
  return images, labels, corrupt


def in_memory(
  source: Source, preprocess: Preprocess, corrupt_examples: CorruptExamples | None = None
) -> ArraySource:
  """Decodes all examples once; all images must have the same size.

  Args:
    source, preprocess: where the examples come from, and how to decode them.
    corrupt_examples: records the corrupt examples, which are left 0; None tolerates none.

  Raises:
    UserError: if too many are corrupt, or one has the wrong size.
  """
  if isinstance(source, ArraySource):
    return source
  corrupt_examples = CorruptExamples() if corrupt_examples is None else corrupt_examples

  def decoded(start: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    indices = range(start, min(start + 256, len(source)))
    return read(source, preprocess, indices, itertools.repeat(None), corrupt_examples.reasons)

  with futures.ThreadPoolExecutor() as pool:  # decoding releases the GIL
    images, labels, corrupt = zip(*pool.map(decoded, range(0, len(source), 256)), strict=True)
  corrupt_examples.note({index: reason for part in corrupt for index, reason in part.items()})
  return ArraySource(np.concatenate(images), np.concatenate(labels), source.class_names)


@functools.lru_cache(maxsize=2)
def _shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(length)
