"""Sources of examples: scikit-learn's digits, TFDS records, or a directory of images.

A source yields the examples of a split as (image, label). The image is an encoded
image file (bytes), or uint8 pixels [h, w, c] if it was never encoded.
"""

from collections.abc import Iterable, Sequence
import hashlib
import os
import pathlib
import shlex
from typing import Protocol

import numpy as np

from convmixer_jax.errors import CorruptError, UserError, needs

Example = tuple[bytes | np.ndarray, int]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# Directory names that are recognised as the evaluation split, in this order.
_EVALUATED = ("validation", "val", "valid", "test")


class Source(Protocol):
  """Random access to the examples of one split. Must be picklable, for worker processes."""

  @property
  def class_names(self) -> Sequence[str]:
    """The names of the labels 0, 1, ..."""

  @property
  def channels(self) -> int:
    """Channels of the decoded images: 1 for greyscale, 3 for colour."""

  def __len__(self) -> int: ...

  def read(self, indices: Iterable[int]) -> list[Example]:
    """The examples with these indices, from 0, in the given order.

    Raises:
      CorruptError: if one of them cannot be read.
    """

  def describe(self, index: int) -> str:
    """Identifies an example in messages to the user."""


class ArraySource:
  """Examples in memory: uint8 images [n, h, w, c] and int32 labels [n]."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]):
    self.images, self.labels, self.class_names = images, labels, class_names
    self.channels = images.shape[-1]

  def __len__(self) -> int:
    return len(self.images)

  def read(self, indices: Iterable[int]) -> list[Example]:
    """See `Source`."""
    return [(self.images[index], int(self.labels[index])) for index in indices]

  def describe(self, index: int) -> str:
    """See `Source`."""
    return f"example {index}"


class TfdsSource:
  """A split of a TFDS dataset prepared as ArrayRecord; does not need TensorFlow."""

  def __init__(self, name: str, split: str, data_dir: str | None):
    with needs("train"):
      import tensorflow_datasets as tfds

    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = root.expanduser()
    try:
      builder = tfds.builder(name, data_dir=root)
    except (tfds.core.DatasetNotFoundError, ValueError):
      raise UserError(
        f'config.data.dataset is "{name}": not "digits", "folder", a TFDS dataset, or one prepared '
        f"in {root}; see `python -m convmixer_jax.prepare --help`"
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
        f'config.data.dataset is "{name}", which has the features {", ".join(features)}; '
        "image classification needs image and label"
      )
    try:
      self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except ValueError:
      raise UserError(
        f'a split of config.data is "{split}"; {name} has {", ".join(builder.info.splits)}, and '
        'slices such as "train[:90%]"'
      ) from None
    except NotImplementedError:
      how = "convert them in place with" if convertible else "move them away and prepare it with"
      raise UserError(
        f"{builder.data_dir} has {builder.info.file_format.value} files, which do not allow random "
        f"access: {how} `{_prepare_command(name, root)}`"
      ) from None
    # `prepare` can rebuild a single file from TFRecord, but otherwise only the whole dataset.
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
    """See `Source`. Reads all in one request, which is faster than one request each.

    Raises:
      CorruptError: if a record does not match its checksum.
      UserError: naming a file that is missing, or truncated (the index is at its end).
    """
    indices = [int(index) for index in indices]
    try:
      records = self._records.__getitems__(indices)
    except RuntimeError as error:  # array_record's
      self._check_files(indices)
      raise CorruptError(f"the record cannot be read: {error}") from None
    return [(record["image"], int(record["label"])) for record in records]

  def describe(self, index: int) -> str:
    """See `Source`."""
    return f"{self._name}, example {index}"

  def _check_files(self, indices: list[int]) -> None:
    """Checks that the files of these examples can be opened; raises UserError otherwise."""
    from array_record.python import array_record_module

    for file in {self._files[i] for i in np.searchsorted(self._ends, indices, "right")}:
      try:
        array_record_module.ArrayRecordReader(file).close()
      except RuntimeError as error:
        raise UserError(
          f"{file} is missing, truncated or not an ArrayRecord file: restore it from a backup, or "
          f"{self._remedy}. {error}"
        ) from None


class FolderSource:
  """A directory of images with one directory per class: `root/SPLIT/CLASS/name.jpg`.

  The split "validation" is the first existing directory of validation, val, valid and test. If
  `root` has only `train`, or the classes themselves, a fifth of each class is held out as
  "validation", and the rest is "train". The hash of the path selects the images, so every run
  holds out the same ones. A class of two or more images has at least one in each split.
  """

  channels = 3

  def __init__(self, root: str | None, split: str):
    if root is None:
      raise UserError(
        'config.data.dataset is "folder", but config.data.data_dir is not set: set '
        "--config.data.data_dir=DIR to a directory with one directory of images per class"
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
        f"{directory} has no {', '.join(IMAGE_SUFFIXES)} files in its class directories"
        + (f' for the split "{split}"' if is_shared else "")
      )

  def __len__(self) -> int:
    return len(self._files)

  def read(self, indices: Iterable[int]) -> list[Example]:
    """See `Source`."""
    try:
      return [(file.read_bytes(), label) for file, label in (self._files[i] for i in indices)]
    except OSError as error:
      raise CorruptError(f"the file cannot be read: {error.strerror}") from None

  def describe(self, index: int) -> str:
    """See `Source`; gives the path."""
    return str(self._files[index][0])


def directories(parent: pathlib.Path) -> list[pathlib.Path]:
  """The subdirectories, sorted, without hidden ones such as .git."""
  return sorted(d for d in parent.iterdir() if d.is_dir() and not d.name.startswith("."))


def images(directory: pathlib.Path) -> list[pathlib.Path]:
  """The image files at any depth, sorted; hidden files and directories are skipped."""
  found: list[pathlib.Path] = []
  for parent, below, files in os.walk(directory):
    below[:] = [name for name in below if not name.startswith(".")]
    paths = [pathlib.Path(parent, name) for name in files if not name.startswith(".")]
    found += [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
  return sorted(found)


def _find_split(root: pathlib.Path, split: str) -> tuple[pathlib.Path, bool]:
  """The parent of the class directories, and whether "train" and "validation" share its images."""
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
    f"{', '.join(names[:9])}. Name one of these that has one directory per class, or set "
    "--config.data.train_split=train --config.data.eval_split=validation: the latter may also be "
    "named val, valid or test, and is a fifth of the images if there is only train, or only classes"
  )


def _hold_out(directory: pathlib.Path, files: Sequence[pathlib.Path]) -> set[pathlib.Path]:
  """A fifth of the images of a class, and at least one if there are two or more."""

  def drawn(file: pathlib.Path) -> bytes:
    return hashlib.sha256(file.relative_to(directory).as_posix().encode()).digest()

  return set(sorted(files, key=drawn)[: max(len(files) // 5, min(1, len(files) - 1))])


def digits(split: str) -> ArraySource:
  """scikit-learn's 1,797 handwritten digits, 8x8 greyscale; every fifth is in the test split.

  They are shuffled with a fixed seed before the split, because the file is ordered
  by writer.
  """
  if split not in ("train", "test"):
    raise UserError(f'a split of config.data is "{split}"; digits has train and test')
  with needs("train"):
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
    UserError: if there is no such dataset or split, or it is not prepared; says
      where it looked and which command prepares the dataset.
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
    f"Prepare it with `{command} --manual_dir=DIR`, where DIR has ILSVRC2012_img_train.tar and "
    "ILSVRC2012_img_val.tar from image-net.org, or set config.data.data_dir or $TFDS_DATA_DIR"
  )
