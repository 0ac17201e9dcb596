"""Prepare a dataset as TFDS ArrayRecord files, without TensorFlow. Run it once per dataset:

  python -m convmixer_jax.prepare cifar10
  python -m convmixer_jax.prepare cifar100 --data_dir=/data/tfds
  python -m convmixer_jax.prepare imagenet2012 --manual_dir=/downloads
  python -m convmixer_jax.prepare folder --name=my_set --manual_dir=/photos

The CIFAR archives are downloaded, or taken from --manual_dir if it has them.
imagenet2012 reads ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which
require a registration at image-net.org. folder reads /photos/SPLIT/CLASS/*.jpg
and creates a dataset named my_set. Any other name uses the builder of TFDS;
most of those need TensorFlow.

If a dataset, of any name, is already prepared as TFRecord files (the default of
TFDS), ArrayRecord files are added next to them.
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

from convmixer_jax import cli
from convmixer_jax.errors import UserError, needs

_TIMEOUT = (4, 8)  # seconds to connect, and between two chunks of a response


def prepare(
  dataset: str, data_dir: str | None = None, manual_dir: str | None = None, name: str | None = None
) -> str:
  """Prepares a dataset unless it is already prepared; a partial one never takes its place.

  Args:
    dataset: "cifar10", "cifar100", "imagenet2012", "folder", or another TFDS name.
    data_dir: root of prepared datasets; default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    manual_dir: directory of archives or images; default DATA_DIR/downloads/manual.
    name: name of a "folder" dataset.

  Returns:
    A one-line summary of what was done, and where the dataset is.

  Raises:
    UserError: if anything is missing, corrupt or invalid.
  """
  with needs("train"):
    import requests
    import tensorflow_datasets as tfds

    from convmixer_jax.data import tfrecord
    from convmixer_jax.data.builders import builder_of, reason

  source = pathlib.Path(manual_dir).expanduser() if manual_dir else None
  try:
    # `main` prints one line in place of TFDS's output. Progress bars go to stderr.
    with contextlib.redirect_stdout(io.StringIO()):
      builder = builder_of(dataset, source, data_dir, name)
      state = "was already prepared" if builder.data_path.exists() else "is prepared"
      if state == "is prepared":
        config = tfds.download.DownloadConfig(manual_dir=source)
        with _impatient():
          builder.download_and_prepare(file_format="array_record", download_config=config)
      elif builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        if tfrecord.convert(builder):
          state = "is converted from TFRecord"
      elif tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
          f"{builder.data_dir} exists, but not as ArrayRecord: move it, or choose another "
          "--data_dir"
        )
  except UserError:
    raise
  except tfds.core.DatasetNotFoundError as error:
    known = "cifar10, cifar100, imagenet2012, folder, or one from tensorflow.org/datasets"
    raise UserError(f'"{dataset}" is not a dataset: use {known}') from error
  except requests.RequestException as error:
    url = str(error.request.url) if error.request else "its archive"
    raise UserError(
      f"{dataset} could not be prepared: {url} cannot be reached, {reason(error)}. Check the "
      "network, or prepare it on another machine and copy its directory into --data_dir"
    ) from error
  except Exception as error:  # TFDS builders can raise anything
    if "No module named 'tensorflow'" not in str(error):
      message = f"{type(error).__name__}: {textwrap.shorten(str(error), 400)}"
      raise UserError(f"{dataset} could not be prepared: {message}") from error
    given = {"data_dir": data_dir, "manual_dir": manual_dir}
    options = "".join(f" --{flag}={value}" for flag, value in given.items() if value)
    raise UserError(
      f"TFDS needs TensorFlow to prepare {dataset}, though not to read it. Prepare it once in a "
      "separate environment: `python -m venv tf && tf/bin/pip install tensorflow "
      "tensorflow-datasets array_record importlib_resources && tf/bin/tfds build "
      f"{dataset} --file_format=array_record{options}`"
    ) from error
  splits = ", ".join(f"{s.name} {s.num_examples:,}" for s in builder.info.splits.values())
  return f"{builder.info.full_name} {state} in {builder.data_dir}: {splits} examples"


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
  """Limits downloads to two attempts with a short timeout; TFDS makes eleven, without one."""
  import requests
  import urllib3

  send = requests.adapters.HTTPAdapter.send

  def impatient(self: Any, request: Any, **options: Any) -> Any:
    self.max_retries = urllib3.Retry(1, read=0, redirect=0)
    return send(self, request, **(options | {"timeout": _TIMEOUT}))

  with mock.patch.object(requests.adapters.HTTPAdapter, "send", impatient):
    yield


def main(argv: Sequence[str]) -> None:
  """Prepares the dataset named on the command line; an error exits with one line and status 1."""
  logging.set_verbosity(logging.WARNING)
  stdlib_logging.getLogger("urllib3").setLevel(stdlib_logging.ERROR)  # it warns on each attempt
  with needs("train"):
    import tensorflow_datasets as tfds
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  options = flags.FLAGS
  try:
    if len(argv) != 2:
      raise UserError(f"expected one dataset, got {len(argv) - 1}; see --help")
    done = prepare(argv[1], options.data_dir, options.manual_dir, options.name)
  except UserError as error:
    sys.exit(str(error))
  print(done)


def run() -> None:
  """Runs the command line."""
  flags.DEFINE_string("data_dir", None, "default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
  flags.DEFINE_string("manual_dir", None, "archives or images; default: DATA_DIR/downloads/manual")
  flags.DEFINE_string("name", None, "name of a folder dataset")
  cli.run(main)


if __name__ == "__main__":
  run()
