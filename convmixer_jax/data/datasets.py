"""Where examples come from: scikit-learn's digits, TFDS records, or a directory of images.

A source gives the examples of a split as (image, label): the image is an encoded
JPEG or PNG file (bytes), or uint8 pixels [h, w, c] where none was encoded.
"""

from collections.abc import Iterable, Sequence
import hashlib
import os
import pathlib
import shlex
from typing import Protocol

import numpy as np

from convmixer_jax.errors import CorruptError, UserError

Example = tuple[bytes | np.ndarray, int]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# What a directory of images for evaluation may be called.
_EVALUATED = ("validation", "val", "valid", "test")


class Source(Protocol):
  """Random access to the examples of one split; can be pickled for worker processes."""

  @property
  def class_names(self) -> Sequence[str]:
    """The names of the labels 0, 1, ..."""

  @property
  def channels(self) -> int:
    """Of the decoded images: 1 for grey, 3 for colour."""

  def __len__(self) -> int: ...

  def read(self, indices: Iterable[int]) -> list[Example]:
    """The examples with these numbers, from 0, in this order.

    Raises:
      CorruptError: if one of them cannot be read.
    """

  def describe(self, index: int) -> str:
    """Which example this is, for a message to the user."""


class ArraySource:
  """Examples that are in memory: uint8 images [n, h, w, c] and int32 labels [n]."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]):
    self.images, self.labels, self.class_names = images, labels, class_names
    self.channels = images.shape[-1]

  def __len__(self) -> int:
    return len(self.images)

  def read(self, indices: Iterable[int]) -> list[Example]:
    """As in `Source`."""
    return [(self.images[index], int(self.labels[index])) for index in indices]

  def describe(self, index: int) -> str:
    """As in `Source`."""
    return f"example {index}"


class TfdsSource:
  """A split of a dataset that TFDS has prepared as ArrayRecord; needs no TensorFlow."""

  def __init__(self, name: str, split: str, data_dir: str | None):
    # TFDS is imported here because only this source needs it.
    import tensorflow_datasets as tfds

    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = root.expanduser()
    try:
      builder = tfds.builder(name, data_dir=root)
    except (tfds.core.DatasetNotFoundError, ValueError):
      raise UserError(
        f'config.data.dataset is "{name}", which is neither "digits", "folder", a dataset of TFDS, '
        f"nor prepared in {root}; see `python -m convmixer_jax.prepare --help`"
      ) from None
    if not builder.info.splits:
      raise UserError(
        f"{builder.info.full_name} ({type(builder).__qualname__}) is not prepared: looked in "
        f"{builder.data_dir}. {_how_to_prepare(name, root)}"
      )
    convertible = builder.info.file_format == tfds.core.FileFormat.TFRECORD
    features = builder.info.features
    if not {"image", "label"} <= set(features):
      raise UserError(
        f'config.data.dataset is "{name}", whose features are {", ".join(features)}; '
        "an image classification dataset has image and label"
      )
    try:
      self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except ValueError:
      raise UserError(
        f'a split of config.data is "{split}"; {name} has {", ".join(builder.info.splits)}, and '
        'slices of them such as "train[:90%]"'
      ) from None
    except NotImplementedError:
      how = "convert them in place with" if convertible else "move them away and prepare it with"
      raise UserError(
        f"{builder.data_dir} holds {builder.info.file_format.value} files, which have no random "
        f"access: {how} `{_prepare_command(name, root)}`"
      ) from None
    # `prepare` makes a file anew where there is one to convert, or else the whole dataset.
    self._remedy = (
      f"remove it and run `{_prepare_command(name, root)}`"
      if convertible
      else f"remove {builder.data_dir} and prepare the dataset again"
    )
    self._name = f'{builder.info.full_name}, split "{split}"'
    parts = builder.info.splits[split].file_instructions
    self._files = [part.filename for part in parts]
    self._ends = np.cumsum([part.take for part in parts])
    self.class_names = features["label"].names
    self.channels = features["image"].shape[-1] or 3

  def __len__(self) -> int:
    return len(self._records)

  def read(self, indices: Iterable[int]) -> list[Example]:
    """As in `Source`; one request for all of them, which is faster than one for each.

    Raises:
      CorruptError: if a record does not agree with its checksum.
      UserError: naming the file that is missing, or has lost the index at its end.
    """
    indices = [int(index) for index in indices]
    try:
      records = self._records.__getitems__(indices)
    except RuntimeError as error:  # array_record's
      self._check_files(indices)
      raise CorruptError(f"the record cannot be read: {error}") from None
    return [(record["image"], int(record["label"])) for record in records]

  def describe(self, index: int) -> str:
    """As in `Source`."""
    return f"{self._name}, example {index}"

  def _check_files(self, indices: list[int]) -> None:
    """Looks whether the files that hold these examples can be opened at all."""
    from array_record.python import array_record_module

    for file in {self._files[i] for i in np.searchsorted(self._ends, indices, "right")}:
      try:
        array_record_module.ArrayRecordReader(file).close()
      except RuntimeError as error:
        raise UserError(
          f"{file} is missing, cut short or no ArrayRecord file: bring it back from a copy, or "
          f"{self._remedy}. {error}"
        ) from None


class FolderSource:
  """A directory of images with a directory for each class: `root/SPLIT/CLASS/name.jpg`.

  The split "validation" is the first of the directories validation, val, valid and test that there
  is. If `root` holds nothing but `train`, or the classes themselves, a fifth of the images of each
  class are "validation", and "train" has the others. The hash of an image's path decides, so that
  each start finds the same ones; a class of two images or more has at least one in both.
  """

  channels = 3

  def __init__(self, root: str | None, split: str):
    if root is None:
      raise UserError(
        'config.data.dataset is "folder", but it is not told which: set --config.data.data_dir=DIR '
        "to a directory with one directory of images for each class"
      )
    directory, is_shared = _find_split(pathlib.Path(root).expanduser(), split)
    of_class = {entry.name: images(entry) for entry in directories(directory)}
    if is_shared:
      of_class = {
        name: [file for file in files if (file in held_out) == (split != "train")]
        for name, files in of_class.items()
        if files
        for held_out in [_hold_out(directory, files)]
      }
    self.class_names = list(of_class)
    self._files = [(file, label) for label, files in enumerate(of_class.values()) for file in files]
    if not self._files:
      raise UserError(
        f"{directory} has no {', '.join(IMAGE_SUFFIXES)} files in directories of classes"
        + (f' for the split "{split}"' if is_shared else "")
      )

  def __len__(self) -> int:
    return len(self._files)

  def read(self, indices: Iterable[int]) -> list[Example]:
    """As in `Source`."""
    try:
      return [(file.read_bytes(), label) for file, label in (self._files[i] for i in indices)]
    except OSError as error:
      raise CorruptError(f"the file cannot be read: {error.strerror}") from None

  def describe(self, index: int) -> str:
    """As in `Source`: the file."""
    return str(self._files[index][0])


def directories(parent: pathlib.Path) -> list[pathlib.Path]:
  """The directories in one, sorted, without hidden ones such as .git."""
  return sorted(d for d in parent.iterdir() if d.is_dir() and not d.name.startswith("."))


def images(directory: pathlib.Path) -> list[pathlib.Path]:
  """The files of images at any depth, sorted, without hidden ones and those in hidden places."""
  found: list[pathlib.Path] = []
  for parent, below, files in os.walk(directory):
    below[:] = [name for name in below if not name.startswith(".")]
    paths = [pathlib.Path(parent, name) for name in files if not name.startswith(".")]
    found += [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
  return sorted(found)


def _find_split(root: pathlib.Path, split: str) -> tuple[pathlib.Path, bool]:
  """The directory of the classes, and whether "train" and "validation" share its images."""
  if not root.is_dir():
    raise UserError(f"config.data.data_dir={root} is not a directory")
  names = [entry.name for entry in directories(root)]
  evaluated = [name for name in _EVALUATED if name in names]
  if split in ("train", "validation"):
    if names == ["train"]:
      return root / "train", True
    if "train" not in names and not evaluated:
      return root, True
    if split == "validation" and evaluated:
      return root / evaluated[0], False
  if split in names:
    return root / split, False
  raise UserError(
    f'a split of config.data is "{split}", but {root} has no directory of that name; it has '
    f"{', '.join(names[:9])}. Name one of these that has a directory for each class, or set "
    "--config.data.train_split=train --config.data.eval_split=validation: the latter is also "
    "called val, valid or test, or is a fifth of the images where there is only train, or classes"
  )


def _hold_out(directory: pathlib.Path, files: Sequence[pathlib.Path]) -> set[pathlib.Path]:
  """A fifth of the images of a class, at least one if there are two."""

  def drawn(file: pathlib.Path) -> bytes:
    return hashlib.sha256(file.relative_to(directory).as_posix().encode()).digest()

  return set(sorted(files, key=drawn)[: max(len(files) // 5, min(1, len(files) - 1))])


def digits(split: str) -> ArraySource:
  """The 1,797 handwritten digits, 8x8 grey, that scikit-learn bundles; every fifth is for the test.

  They are shuffled once with a fixed seed before the split, for the file is
  ordered by writer.
  """
  if split not in ("train", "test"):
    raise UserError(f'a split of config.data is "{split}"; digits has train and test')
  # scikit-learn is imported here because only this source needs it.
  from sklearn.datasets import load_digits

  bunch = load_digits()
  order = np.random.RandomState(0).permutation(len(bunch.images))
  is_test = np.arange(len(order)) % 5 == 0
  chosen = order[is_test if split == "test" else ~is_test]
  images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]
  return ArraySource(images, bunch.target[chosen].astype(np.int32), [str(i) for i in range(10)])


def open_source(dataset: str, split: str, data_dir: str | None = None) -> Source:
  """Opens one split of "digits", of "folder" (below `data_dir`), or of a TFDS dataset by name.

  Raises:
    UserError: if there is no such dataset or split, or it is not prepared; it
      says where was looked and which command prepares it.
  """
  if dataset == "digits":
    return digits(split)
  if dataset == "folder":
    return FolderSource(data_dir, split)
  return TfdsSource(dataset, split, data_dir)


def _prepare_command(name: str, root: pathlib.Path) -> str:
  return shlex.join(["python", "-m", "convmixer_jax.prepare", name, f"--data_dir={root}"])


def _how_to_prepare(name: str, root: pathlib.Path) -> str:
  command = _prepare_command(name, root)
  if name != "imagenet2012":
    return f"Prepare it with `{command}`, or set config.data.data_dir or $TFDS_DATA_DIR"
  return (
    f"Prepare it with `{command} --manual_dir=DIR`, DIR holding ILSVRC2012_img_train.tar and "
    "ILSVRC2012_img_val.tar from image-net.org, or set config.data.data_dir or $TFDS_DATA_DIR"
  )
