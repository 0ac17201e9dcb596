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
"""

from collections.abc import Iterator, Sequence
import contextlib
import io
import logging as stdlib_logging
import pathlib
import sys
import textwrap
from typing import Any
from unittest import mock

from absl import flags, logging
import requests
import tensorflow_datasets as tfds
import urllib3

from convmixer_jax import cli
from convmixer_jax.data import tfrecord
from convmixer_jax.data.builders import builder_of, reason
from convmixer_jax.errors import UserError

_TIMEOUT = (4, 8)  # seconds for a connection, and between two parts of an answer


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
    UserError: if anything is missing, corrupt or not as it has to be.
  """
  source = pathlib.Path(manual_dir).expanduser() if manual_dir else None
  try:
    # What TFDS prints, `main` says in one line; the progress bars are on stderr.
    with contextlib.redirect_stdout(io.StringIO()):
      builder = builder_of(dataset, source, data_dir, name)
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
      f"{dataset} could not be prepared: {url} cannot be reached, {reason(error)}. Is there a "
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
  cli.run(main)


if __name__ == "__main__":
  run()
