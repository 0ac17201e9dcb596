"""Files of the safetensors format.

Eight bytes with the length of a header, little-endian; the header, JSON: for each tensor its dtype,
shape and place among the data, and strings about the file under "__metadata__"; the data, without
gaps (the format's description in huggingface/safetensors, README).
"""

import json
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from convmixer_jax.errors import UserError

_DTYPES: dict[str, Any] = {
  "F64": "<f8",
  "F32": "<f4",
  "F16": "<f2",
  "BF16": ml_dtypes.bfloat16,
  "I64": "<i8",
  "I32": "<i4",
  "I16": "<i2",
  "I8": "i1",
  "U8": "u1",
  "BOOL": "?",
}
_LENGTH = 8  # bytes of the header's length


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors by name, of the file's dtypes, read-only, and the strings about the file.

  Raises:
    UserError: if the file is truncated, or no such file.
  """
  data = path.read_bytes()
  start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
  if start > len(data):
    raise UserError(
      f"{path} is truncated or no weights: its header would end at byte {start}, the file has "
      f"{len(data)}"
    )
  try:
    header = json.loads(data[_LENGTH:start])
    metadata = header.pop("__metadata__", {})
    places = {name: (entry["shape"], *entry["data_offsets"]) for name, entry in header.items()}
    dtypes = {name: np.dtype(_DTYPES[entry["dtype"]]) for name, entry in header.items()}
    end = 0
    for name, (shape, first, last) in sorted(places.items(), key=lambda item: item[1][1:]):
      size = math.prod(shape) * dtypes[name].itemsize
      if min(shape, default=0) < 0 or (first, last) != (end, end + size):
        raise ValueError(f"the data of {name!r} are not where its shape {shape} needs them")
      end = last
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} has a damaged header: {type(error).__name__}: {error}") from None
  if start + end != len(data):
    raise UserError(
      f"{path} is truncated or damaged: its header tells of {start + end} bytes, it has {len(data)}"
    )
  arrays = {
    name: np.frombuffer(data, dtypes[name], math.prod(shape), start + first).reshape(shape)
    for name, (shape, first, _) in places.items()
  }
  return arrays, metadata


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
  """Writes the tensors and the strings about the file, in one piece."""
  dtypes = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
  header: dict[str, Any] = {"__metadata__": metadata}
  chunks, end = [], 0
  # Wide types first, so that each tensor's place is a multiple of its item's size.
  for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
    start, end = end, end + array.nbytes
    place = {"shape": list(array.shape), "data_offsets": [start, end]}
    header[name] = {"dtype": dtypes[array.dtype], **place}
    chunks.append(np.ascontiguousarray(array).tobytes())
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % _LENGTH)
  partial = path.with_name(f"{path.name}.partial")
  partial.write_bytes(b"".join([len(text).to_bytes(_LENGTH, "little"), text, *chunks]))
  partial.replace(path)
