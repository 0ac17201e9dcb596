"""Conversion of TFDS's TFRecord files to ArrayRecord, for random access, without TensorFlow.

TFDS writes the same serialised examples to both, so a shard is converted by copying its records.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import json
import os
import pathlib
import shutil
import struct
from typing import Any

import google_crc32c
import tqdm

from convmixer_jax.errors import UserError

_Shard = tuple[pathlib.Path, pathlib.Path, int]  # TFRecord file, ArrayRecord file, record count


def records(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a TFRecord file in order.

  Each record is stored as its length (8 bytes), the checksum of the length (4 bytes), the data, and
  the checksum of the data (4 bytes). Source: TensorFlow, `lib/io/record_writer.h`.

  Raises:
    UserError: if the file is missing or truncated, or a checksum does not match.
  """
  try:
    with path.open("rb") as file:
      while header := file.read(12):
        if len(header) < 12 or header[8:] != _masked_crc(header[:8]):
          raise UserError(_broken(path))
        (length,) = struct.unpack("<Q", header[:8])
        record, crc = file.read(length), file.read(4)
        if crc != _masked_crc(record):
          raise UserError(_broken(path))
        yield record
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from None


def convert(builder: Any) -> bool:
  """Adds ArrayRecord files to a prepared dataset, next to its TFRecord files.

  A file is renamed into place only once it is complete, and `dataset_info.json` lists the format
  only once all files are. An interrupted conversion resumes when it is run again.

  Args:
    builder: the TFDS builder of the dataset.

  Returns:
    Whether anything was converted.

  Raises:
    UserError: if a TFRecord file is missing or corrupt, the directory is not writable, or its disk
      is too small.
  """
  directory, shards = pathlib.Path(builder.data_dir), _shards(builder)
  missing = [shard for shard in shards if not shard[1].exists()]
  info = directory / "dataset_info.json"
  settings = json.loads(info.read_text())
  formats = settings.setdefault("alternativeFileFormats", [])
  if not missing and "array_record" in formats:
    return False
  if absent := [source for source, _, _ in missing if not source.exists()]:
    raise UserError(f"{absent[0]} is missing: restore it from a backup")
  for partial in directory.glob("*.array_record-*.partial*"):  # left by a killed conversion
    partial.unlink()
  need, free = sum(source.stat().st_size for source, _, _ in missing), shutil.disk_usage(directory)
  if need > free.free:
    raise UserError(
      f"{directory} needs {need / 2**30:.1f} GiB for ArrayRecord files next to its TFRecord files, "
      f"but {free.free / 2**30:.1f} GiB are free: free up space, or move the dataset to a larger "
      "disk"
    )
  try:
    _convert_shards(missing)
    partial = info.with_suffix(f".partial{os.getpid()}")
    settings["alternativeFileFormats"] = sorted({*formats, "array_record"})
    partial.write_text(json.dumps(settings, indent=2))
    partial.replace(info)
  except OSError as error:
    raise UserError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
  except RuntimeError as error:  # ArrayRecord's
    raise UserError(f"{directory} cannot be written: {error}") from None
  return True


def _shards(builder: Any) -> list[_Shard]:
  found = []
  for split in builder.info.splits.values():
    template = split.filename_template
    for index, length in enumerate(split.shard_lengths):
      source, target = (
        template.replace(filetype_suffix=suffix).sharded_filepath(
          shard_index=index, num_shards=len(split.shard_lengths)
        )
        for suffix in ("tfrecord", "array_record")
      )
      found.append((pathlib.Path(source), pathlib.Path(target), length))
  return found


def _convert_shards(shards: Sequence[_Shard]) -> None:
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # ArrayRecord releases the GIL
    tasks = [pool.submit(_convert_shard, *shard) for shard in shards]
    bar = tqdm.tqdm(total=len(tasks), desc="to ArrayRecord", unit=" files", disable=None)
    try:
      for task in futures.as_completed(tasks):
        task.result()
        bar.update()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
    finally:
      bar.close()


def _convert_shard(source: pathlib.Path, target: pathlib.Path, length: int) -> None:
  # Imported here because it is slow to import.
  from array_record.python import array_record_module

  partial = target.with_name(f"{target.name}.partial{os.getpid()}")
  count = 0
  try:
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")  # as TFDS does
    for record in records(source):
      writer.write(record)
      count += 1
    writer.close()
    if count != length:
      raise UserError(f"{source} has {count} records, but dataset_info.json says {length}")
    partial.replace(target)
  finally:
    partial.unlink(missing_ok=True)


def _broken(path: pathlib.Path) -> str:
  return f"{path} is truncated or corrupt: restore it from a backup"


def _masked_crc(content: bytes) -> bytes:
  crc = google_crc32c.value(content)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
