"""TFDS dataset builders that do not need TensorFlow.

The builders of TFDS call TensorFlow to read archives and to encode images. The
subclasses here replace these calls and inherit everything else. Versions,
features, order, shards and records match what TFDS writes with TensorFlow, with
two exceptions. CIFAR's PNG files have the same pixels, but are compressed by a
different encoder. ImageNet's 22 CMYK photographs differ by about one grey level,
because TensorFlow decodes them with a faster, less accurate transform.
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

Examples = Iterator[tuple[int | str, dict[str, Any]]]  # TFDS shuffles by the hash of the key


class _CifarInMemory:
  """The common part of the CIFAR builders; the archives are small enough to read into memory."""

  _cifar_info: Any
  info: Any

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    layout = self._cifar_info
    try:
      path = dl_manager.download(layout.url)  # or from --manual_dir; checks size and SHA-256
    except Exception as error:
      raise UserError(
        f"{layout.url} cannot be downloaded, is missing or corrupt. Put the file into a "
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
    # A row holds its labels, then the red, green and blue planes.
    rows = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
    for index, row in enumerate(rows):
      image = PIL.Image.fromarray(row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0))
      yield (
        index,
        {"id": f"{split}_{index:05}", "image": image, **dict(zip(keys, row, strict=False))},
      )


class Cifar10(_CifarInMemory, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
  """The cifar10 of TFDS. TFDS looks for descriptions next to a builder's `__module__`."""

  name, __module__ = "cifar10", cifar.__name__


class Cifar100(_CifarInMemory, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
  """The cifar100 of TFDS."""

  name, __module__ = "cifar100", cifar.__name__


class Imagenet2012(imagenet.Builder, skip_registration=True):  # type: ignore[call-arg]
  """The imagenet2012 of TFDS; it has a test split only if ILSVRC2012_img_test.tar exists."""

  name, __module__ = "imagenet2012", imagenet.__name__

  def __init__(self, tar_dir: pathlib.Path | None, data_dir: str | None):
    super().__init__(data_dir=data_dir)
    self._tar_dir = tar_dir or pathlib.Path(self.data_dir_root) / "downloads" / "manual"

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    classes = {f"{name}.tar" for name in self.info.features["label"].names}
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    labels = enumerate(path.read_text().split(), start=1)
    # TFDS assigns the labels in the order of the tar, which would be wrong after a
    # missing image. Labels by file name are the same, and safe.
    label_of = {f"ILSVRC2012_val_{i:08}.JPEG": label for i, label in labels}
    splits = {
      "train": self._generate_examples(self._members("train", classes)),
      "validation": self._generate_examples(self._members("val", label_of), label_of),
    }
    if (self._tar_dir / "ILSVRC2012_img_test.tar").exists():
      splits["test"] = self._generate_examples(self._members("test", None), labels_exist=False)
    return splits

  def _members(self, split: str, allowed: Container[str] | None) -> Iterator[tuple[str, Any]]:
    """Checks the tar now; the returned iterator yields its files."""
    path = self._tar_dir / f"ILSVRC2012_img_{split}.tar"
    if not path.exists():
      raise UserError(
        f"{path} does not exist. Register at https://image-net.org/download-images, download "
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (145 GB) into a directory DIR, then "
        f"run `python -m convmixer_jax.prepare imagenet2012 --data_dir={self.data_dir_root} "
        "--manual_dir=DIR`"
      )
    # A truncated tar can read as a shorter one, but a complete tar ends with two zero blocks.
    with path.open("rb") as file:
      file.seek(-min(1024, path.stat().st_size), os.SEEK_END)
      if file.read() != bytes(1024):
        raise UserError(f"{path} is truncated: download it again")
    return _read_tar(path, allowed)

  def _fix_image(self, image_fname: str, image: Any) -> Any:
    if image_fname not in imagenet.CMYK_IMAGES and image_fname not in imagenet.PNG_IMAGES:
      return image
    file = io.BytesIO()
    # Matches TensorFlow's encode_jpeg, down to the 300 dpi in the header.
    options = {"quality": 100, "subsampling": "4:2:0", "dpi": (300, 300)}
    PIL.Image.open(image).convert("RGB").save(file, "JPEG", **options)
    return io.BytesIO(file.getvalue())


def _read_tar(path: pathlib.Path, allowed: Container[str] | None) -> Iterator[tuple[str, Any]]:
  with path.open("rb") as file:
    for name, member in tfds.download.iter_archive(file, tfds.download.ExtractMethod.TAR):
      if allowed is not None and name not in allowed:
        raise UserError(f"{path} has an unexpected file {name}: use the archive from image-net.org")
      yield name, member


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A custom dataset from `root/split/class/image.jpg`; files are stored without re-encoding.

  Labels number the sorted class names. `file_name` is the path relative to the
  directory of the split.
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
        raise UserError(f"{split} has no class directories; {layout}")
      if differing := ", ".join(sorted(set(classes) ^ set(here))[:5]):
        raise UserError(
          f"Only one of {splits[0]} and {split} has {differing}: all splits need the same classes"
        )
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
          raise UserError(f"{path} is not a readable image: repair or remove it") from error
        name = path.relative_to(split).as_posix()
        yield name, {"image": path, "label": label, "file_name": name}


def builder_of(
  dataset: str, source: pathlib.Path | None, data_dir: str | None, name: str | None
) -> tfds.core.DatasetBuilder:
  """The builder of a dataset; see `prepare` for the arguments.

  Raises:
    UserError: if the name of a folder is missing, invalid or taken.
  """
  if dataset in ("cifar10", "cifar100"):
    return (Cifar10 if dataset == "cifar10" else Cifar100)(data_dir=data_dir)
  if dataset == "imagenet2012":
    return Imagenet2012(source, data_dir)
  if dataset != "folder":
    return tfds.builder(dataset, data_dir=data_dir)
  if not name or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise UserError(f"--name={name}: a folder needs a name of lower-case letters, digits and _")
  try:
    tfds.builder_cls(name)
  except tfds.core.DatasetNotFoundError:
    if name not in ("digits", "folder"):
      return ImageFolder(name, source, data_dir)
  raise UserError(f"--name={name} is already the name of a dataset: choose another one")


def reason(error: Exception) -> str:
  """What went wrong, on one line; for nested connection errors, the innermost one."""
  while isinstance(error, requests.RequestException | urllib3.exceptions.MaxRetryError):
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if not isinstance(inner, Exception):
      break
    error = inner
  return textwrap.shorten(str(error), 600)
