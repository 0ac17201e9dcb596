"""Prepares a dataset as TFDS ArrayRecord files, without TensorFlow. Run it once per dataset:

  python -m convmixer_jax.prepare cifar10
  python -m convmixer_jax.prepare cifar100 --data_dir=/data/tfds
  python -m convmixer_jax.prepare imagenet2012 --manual_dir=/downloads
  python -m convmixer_jax.prepare folder --name=my_set --manual_dir=/photos

The CIFAR archives are downloaded, or taken from --manual_dir if they lie there.
imagenet2012 reads ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, for
which image-net.org wants a registration. folder reads /photos/SPLIT/CLASS/*.jpg
and makes a dataset called my_set. Any other name is left to the builder that
TFDS has for it, and most of those need TensorFlow.

A dataset that is there as TFRecord files, as TFDS writes them by default, gets
ArrayRecord files beside these, whatever its name.

TFDS's own builders call TensorFlow to read archives and to encode images. The
subclasses here replace these calls and inherit all else, so that versions,
features, order, shards and records are what TFDS with TensorFlow writes, but
for two things: CIFAR's PNG files have the same pixels, but another encoder
compressed them; and ImageNet's 22 CMYK photographs, which TensorFlow decodes
with a faster, less accurate transform, differ by about one grey level.
"""

from collections.abc import Container, Iterator, Sequence
import contextlib
import io
import logging as stdlib_logging
import os
import pathlib
import re
import sys
import textwrap
from typing import Any
from unittest import mock

from absl import flags, logging
import numpy as np
import PIL.Image
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as imagenet
from tensorflow_datasets.image_classification import cifar
import urllib3

from convmixer_jax import command, tfrecord
from convmixer_jax.errors import UserError
from convmixer_jax.source import IMAGE_SUFFIXES, directories, images

_TIMEOUT = (4, 8)  # seconds for a connection, and between two parts of an answer

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
        f"{layout.url} cannot be downloaded, is missing or damaged. Bring the right file into a "
        f"directory DIR by other means, and add --manual_dir=DIR. {_reason(error)}"
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


def prepare(
  dataset: str, data_dir: str | None = None, manual_dir: str | None = None, name: str | None = None
) -> str:
  """Prepares a dataset unless that is done already; only a complete one appears in its place.

  Args:
    dataset: "cifar10", "cifar100", "imagenet2012", "folder", or another name of TFDS.
    data_dir: where prepared datasets are; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    manual_dir: where archives or images are; None: DATA_DIR/downloads/manual.
    name: what a "folder" dataset shall be called.

  Returns:
    One line that says what is there now, and where.

  Raises:
    UserError: if anything is missing, damaged or not as it has to be.
  """
  source = pathlib.Path(manual_dir).expanduser() if manual_dir else None
  try:
    # What TFDS prints, `main` says in one line; the progress bars are on stderr.
    with contextlib.redirect_stdout(io.StringIO()):
      builder = _builder(dataset, source, data_dir, name)
      state = "was prepared already" if builder.data_path.exists() else "is prepared"
      if state == "is prepared":
        config = tfds.download.DownloadConfig(manual_dir=source)
        with _impatient():
          builder.download_and_prepare(file_format="array_record", download_config=config)
      elif builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        if tfrecord.convert(builder):
          state = "is converted from TFRecord"
      elif tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
          f"{builder.data_dir} is there, but not as ArrayRecord: move it, or choose another "
          "--data_dir"
        )
  except UserError:
    raise
  except tfds.core.DatasetNotFoundError as error:
    known = "cifar10, cifar100, imagenet2012, folder, or another from tensorflow.org/datasets"
    raise UserError(f'"{dataset}" is not a dataset: use {known}') from error
  except requests.RequestException as error:
    url = str(error.request.url) if error.request else "its archive"
    raise UserError(
      f"{dataset} could not be prepared: {url} cannot be reached, {_reason(error)}. Is there a "
      "network? If not, prepare it on another machine and copy its directory into --data_dir"
    ) from error
  except Exception as error:  # the builders of TFDS raise anything
    if "No module named 'tensorflow'" not in str(error):
      message = f"{type(error).__name__}: {textwrap.shorten(str(error), 400)}"
      raise UserError(f"{dataset} could not be prepared: {message}") from error
    given = {"data_dir": data_dir, "manual_dir": manual_dir}
    options = "".join(f" --{flag}={value}" for flag, value in given.items() if value)
    raise UserError(
      f"TFDS needs TensorFlow to prepare {dataset}, though not to read it. Prepare it once in an "
      "environment of its own: `python -m venv tf && tf/bin/pip install tensorflow "
      "tensorflow-datasets array_record importlib_resources && tf/bin/tfds build "
      f"{dataset} --file_format=array_record{options}`"
    ) from error
  splits = ", ".join(f"{s.name} {s.num_examples:,}" for s in builder.info.splits.values())
  return f"{builder.info.full_name} {state} in {builder.data_dir}: {splits} examples"


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
  """Downloads try twice, and wait for seconds: TFDS tries eleven times and waits for ever."""
  send = requests.adapters.HTTPAdapter.send

  def impatient(self: Any, request: Any, **options: Any) -> Any:
    self.max_retries = urllib3.Retry(1, read=0, redirect=0)
    return send(self, request, **(options | {"timeout": _TIMEOUT}))

  with mock.patch.object(requests.adapters.HTTPAdapter, "send", impatient):
    yield


def _reason(error: Exception) -> str:
  """In one line what went wrong; of nested errors of a connection the innermost."""
  while isinstance(error, requests.RequestException | urllib3.exceptions.MaxRetryError):
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if not isinstance(inner, Exception):
      break
    error = inner
  return textwrap.shorten(str(error), 600)


def _builder(
  dataset: str, source: pathlib.Path | None, data_dir: str | None, name: str | None
) -> tfds.core.DatasetBuilder:
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


def main(argv: Sequence[str]) -> None:
  """Prepares the dataset that the command line names; a mistake ends it with one line, status 1."""
  logging.set_verbosity(logging.WARNING)
  stdlib_logging.getLogger("urllib3").setLevel(stdlib_logging.ERROR)  # it warns of each attempt
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  options = flags.FLAGS
  try:
    if len(argv) != 2:
      raise UserError(f"one dataset is needed, not {len(argv) - 1}; see --help")
    done = prepare(argv[1], options.data_dir, options.manual_dir, options.name)
  except UserError as error:
    sys.exit(str(error))
  print(done)


def run() -> None:
  """The entry point."""
  flags.DEFINE_string("data_dir", None, "default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
  flags.DEFINE_string("manual_dir", None, "archives or images; default: DATA_DIR/downloads/manual")
  flags.DEFINE_string("name", None, "what a folder dataset shall be called")
  command.run(main)


if __name__ == "__main__":
  run()
