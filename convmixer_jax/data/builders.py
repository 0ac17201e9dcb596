"""Builders of TFDS datasets that need no TensorFlow.

TFDS's own builders call TensorFlow to read archives and to encode images. The
subclasses here replace these calls and inherit all else, so that versions,
features, order, shards and records are what TFDS with TensorFlow writes, but
for two things: CIFAR's PNG files have the same pixels, but another encoder
compressed them; and ImageNet's 22 CMYK photographs, which TensorFlow decodes
with a faster, less accurate transform, differ by about one grey level.
"""

from collections.abc import Container, Iterator, Sequence
import io
import os
import pathlib
import re
import textwrap
from typing import Any

import numpy as np
import PIL.Image
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as imagenet
from tensorflow_datasets.image_classification import cifar
import urllib3

from convmixer_jax.data.datasets import IMAGE_SUFFIXES, directories, images
from convmixer_jax.errors import UserError

Examples = Iterator[tuple[int | str, dict[str, Any]]]  # the key sets the place in the shuffled file


class _CifarInMemory:
  """What the CIFAR builders share: the archives are small enough to be read at once."""

  _cifar_info: Any
  info: Any

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    layout = self._cifar_info
    try:
      path = dl_manager.download(layout.url)  # or from --manual_dir; checks size and SHA-256
    except Exception as error:
      raise UserError(
        f"{layout.url} cannot be downloaded, is missing or corrupt. Bring the right file into a "
        f"directory DIR by other means, and add --manual_dir=DIR. {reason(error)}"
      ) from error
    files = {name: file.read() for name, file in _read_tar(pathlib.Path(path), None)}
    for key, name in zip(layout.label_keys, layout.label_files, strict=True):
      self.info.features[key].names = files[layout.prefix + name].decode().split()
    return {
      split: self._generate_examples(split, b"".join(files[layout.prefix + name] for name in names))
      for split, names in (("train", layout.train_files), ("test", layout.test_files))
    }

  def _generate_examples(self, split: str, content: bytes) -> Examples:
    keys = self._cifar_info.label_keys
    # A row has its labels first, then the red, the green and the blue plane.
    rows = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
    for index, row in enumerate(rows):
      image = PIL.Image.fromarray(row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0))
      yield (
        index,
        {"id": f"{split}_{index:05}", "image": image, **dict(zip(keys, row, strict=False))},
      )


class Cifar10(_CifarInMemory, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
  """The cifar10 of TFDS, which looks for descriptions beside a builder's `__module__`."""

  name, __module__ = "cifar10", cifar.__name__


class Cifar100(_CifarInMemory, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
  """The cifar100 of TFDS."""

  name, __module__ = "cifar100", cifar.__name__


class Imagenet2012(imagenet.Builder, skip_registration=True):  # type: ignore[call-arg]
  """The imagenet2012 of TFDS; it has a test split only if ILSVRC2012_img_test.tar is there too."""

  name, __module__ = "imagenet2012", imagenet.__name__

  def __init__(self, tar_dir: pathlib.Path | None, data_dir: str | None):
    super().__init__(data_dir=data_dir)
    self._tar_dir = tar_dir or pathlib.Path(self.data_dir_root) / "downloads" / "manual"

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    classes = {f"{name}.tar" for name in self.info.features["label"].names}
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    labels = enumerate(path.read_text().split(), start=1)
    # TFDS gives the labels to the tar's names in their order. That is the same,
    # unless an image is missing: then those behind it would get wrong ones.
    label_of = {f"ILSVRC2012_val_{i:08}.JPEG": label for i, label in labels}
    splits = {
      "train": self._generate_examples(self._members("train", classes)),
      "validation": self._generate_examples(self._members("val", label_of), label_of),
    }
    if (self._tar_dir / "ILSVRC2012_img_test.tar").exists():
      splits["test"] = self._generate_examples(self._members("test", None), labels_exist=False)
    return splits

  def _members(self, split: str, allowed: Container[str] | None) -> Iterator[tuple[str, Any]]:
    """Looks at the tar now, and gives its files while the result is iterated over."""
    path = self._tar_dir / f"ILSVRC2012_img_{split}.tar"
    if not path.exists():
      raise UserError(
        f"{path} does not exist. Register at https://image-net.org/download-images, download "
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (145 GB) into a directory DIR, then "
        f"run `python -m convmixer_jax.prepare imagenet2012 --data_dir={self.data_dir_root} "
        "--manual_dir=DIR`"
      )
    # A tar that is cut off can read as a shorter one, but a whole one ends with two zero blocks.
    with path.open("rb") as file:
      file.seek(-min(1024, path.stat().st_size), os.SEEK_END)
      if file.read() != bytes(1024):
        raise UserError(f"{path} is cut off: download it again")
    return _read_tar(path, allowed)

  def _fix_image(self, image_fname: str, image: Any) -> Any:
    if image_fname not in imagenet.CMYK_IMAGES and image_fname not in imagenet.PNG_IMAGES:
      return image
    file = io.BytesIO()
    # As TensorFlow's encode_jpeg does, down to the header's 300 dpi.
    options = {"quality": 100, "subsampling": "4:2:0", "dpi": (300, 300)}
    PIL.Image.open(image).convert("RGB").save(file, "JPEG", **options)
    return io.BytesIO(file.getvalue())


def _read_tar(path: pathlib.Path, allowed: Container[str] | None) -> Iterator[tuple[str, Any]]:
  with path.open("rb") as file:
    for name, member in tfds.download.iter_archive(file, tfds.download.ExtractMethod.TAR):
      if allowed is not None and name not in allowed:
        raise UserError(f"{path} has a file {name}, unlike image-net.org's: use theirs")
      yield name, member


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A dataset of one's own from `root/split/class/image.jpg`, whose files are stored as they are.

  Labels number the sorted names of the classes. `file_name` is the path below
  the directory of the split.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, name: str, root: pathlib.Path | None, data_dir: str | None):
    self.name, self._root = name, root
    super().__init__(data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    image, label, name = tfds.features.Image(), tfds.features.ClassLabel(), tfds.features.Text()
    features = tfds.features.FeaturesDict({"image": image, "label": label, "file_name": name})
    return tfds.core.DatasetInfo(
      builder=self, description=f"The images of {self._root}.", features=features
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    layout = f"folder reads --manual_dir/SPLIT/CLASS/NAME with NAME in {', '.join(IMAGE_SUFFIXES)}"
    splits = directories(self._root) if self._root and self._root.is_dir() else []
    if not splits:
      raise UserError(f"--manual_dir={self._root} has no directories; {layout}")
    classes = [directory.name for directory in directories(splits[0])]
    for split in splits:
      here = [directory.name for directory in directories(split)]
      if not re.fullmatch(r"[A-Za-z]\w*", split.name) or split.name.lower() == "all":
        raise UserError(f'{split}: rename it to letters, digits and _, and not to "all"')
      if not here:
        raise UserError(f"{split} has no directories of classes; {layout}")
      if differing := ", ".join(sorted(set(classes) ^ set(here))[:5]):
        raise UserError(f"Only one of {splits[0]} and {split} has {differing}: all need the same")
      for name in here:
        if not images(split / name):
          raise UserError(f"{split / name} has no images: add some or remove it; {layout}")
    self.info.features["label"].names = classes
    return {split.name: self._generate_examples(split, classes) for split in splits}

  def _generate_examples(self, split: pathlib.Path, classes: Sequence[str]) -> Examples:
    for label in classes:
      for path in images(split / label):
        try:
          PIL.Image.open(path).close()
        except OSError as error:
          raise UserError(f"{path} is not readable as an image: mend or remove it") from error
        name = path.relative_to(split).as_posix()
        yield name, {"image": path, "label": label, "file_name": name}


def builder_of(
  dataset: str, source: pathlib.Path | None, data_dir: str | None, name: str | None
) -> tfds.core.DatasetBuilder:
  """The builder of a dataset; the arguments are those of `prepare`.

  Raises:
    UserError: if a folder has no name of its own.
  """
  if dataset in ("cifar10", "cifar100"):
    return (Cifar10 if dataset == "cifar10" else Cifar100)(data_dir=data_dir)
  if dataset == "imagenet2012":
    return Imagenet2012(source, data_dir)
  if dataset != "folder":
    return tfds.builder(dataset, data_dir=data_dir)
  if not name or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise UserError(f"--name={name}: folder needs a name of lower case letters, digits and _")
  try:
    tfds.builder_cls(name)
  except tfds.core.DatasetNotFoundError:
    if name not in ("digits", "folder"):
      return ImageFolder(name, source, data_dir)
  raise UserError(f"--name={name} is a dataset already: choose a name of your own")


def reason(error: Exception) -> str:
  """In one line what went wrong; of nested errors of a connection the innermost."""
  while isinstance(error, requests.RequestException | urllib3.exceptions.MaxRetryError):
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if not isinstance(inner, Exception):
      break
    error = inner
  return textwrap.shorten(str(error), 600)
