"""Reads files written by `torch.save` without PyTorch; nothing in them is executed.

Such a file is a zip archive of a pickle, `data.pkl`, and of the raw data it refers to, `data/0`,
`data/1`... A pickle can call any function by name. Here only the few that tensors and their
containers need are resolved, to harmless stand-ins; any other name is refused. (`torch.load` with
`weights_only` has the same rule.)
"""

import collections
import io
import math
import pathlib
import pickle
import pickletools
from typing import Any, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from convmixer_jax.errors import UserError

# NumPy dtypes by PyTorch's storage names.
_STORAGES: dict[str, Any] = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}
# The opcodes that `torch.save` uses, of protocol 2.
_INSTRUCTIONS = """
  APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD
  EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE
  NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""


class _Tensor(NamedTuple):
  """A tensor as described in the pickle; shape and strides count items of the storage."""

  storage: Any
  offset: Any
  shape: Any
  strides: Any


class _Storage(NamedTuple):
  """Data shared by tensors: the entry in the archive, and PyTorch's name of the type."""

  key: Any
  kind: Any


def read(path: pathlib.Path) -> Any:
  """Reads what was saved, with tensors as read-only NumPy arrays.

  Reads tensors at the top level, in a dictionary, and in a dictionary of dictionaries. Tensors in
  other containers or deeper, such as an optimizer state, are not read.

  Raises:
    UserError: if the file is corrupt, has another format, or its pickle needs more than tensors.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      return _Reader(path, archive).read()
  except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
    raise UserError(f"{path} is truncated or corrupt: {error}") from None


class _Reader:
  """An open archive, and a cache of its storages."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
    self._path, self._archive = path, archive
    self._storages: dict[_Storage, np.ndarray] = {}
    found = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(found) != 1:
      raise UserError(f"{path} is a zip archive, but not from PyTorch: it has no data.pkl")
    self._root = found[0].removesuffix("data.pkl")

  def read(self) -> Any:
    if f"{self._root}byteorder" in self._archive.namelist():
      order = self._entry("byteorder")
      if order != b"little":
        raise UserError(f"{self._path} has byte order {order!r}; only b'little' is supported")
    pickled = self._entry("data.pkl")
    try:
      _check_instructions(pickled)
      return self._with_arrays(_Unpickler(io.BytesIO(pickled)).load())
    except _RefusedError as error:
      raise UserError(
        f"{self._path} refers to {error}, which weights do not need and which may run code; it was "
        "not called. If you trust the file, load it with PyTorch and save only its state_dict"
      ) from None
    except (UserError, zipfile.BadZipFile):
      raise
    except Exception as error:  # a corrupt pickle can make the unpickler raise anything
      raise UserError(
        f"{self._path} has a corrupt data.pkl: {type(error).__name__}: {error}"
      ) from None

  def _with_arrays(self, value: Any, depth: int = 2) -> Any:
    if isinstance(value, _Tensor):
      return self._array(value)
    if isinstance(value, dict) and depth:
      return {key: self._with_arrays(item, depth - 1) for key, item in value.items()}
    return value

  def _array(self, tensor: _Tensor) -> np.ndarray:
    if tensor.storage not in self._storages:
      dtype = np.dtype(_STORAGES[tensor.storage.kind])
      data = self._entry(f"data/{tensor.storage.key}")
      self._storages[tensor.storage] = np.frombuffer(data, dtype)
    items = self._storages[tensor.storage]
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
      raise ValueError(f"{tensor} is not a valid tensor")
    last = sum((n - 1) * by for n, by in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and tensor.offset + last >= items.size:
      raise ValueError(f"a tensor of shape {tensor.shape} exceeds its {items.size} stored values")
    strides = [items.itemsize * by for by in tensor.strides]
    start = items[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False)

  def _entry(self, name: str) -> bytes:
    try:
      info = self._archive.getinfo(self._root + name)
    except KeyError:
      raise UserError(f"{self._path} is corrupt: {name} is missing in the archive") from None
    if info.compress_type != zipfile.ZIP_STORED:  # else a small file could exhaust memory
      raise UserError(f"{self._path} is compressed, which files of PyTorch never are")
    return self._archive.read(info)


def _check_instructions(pickled: bytes) -> None:
  """Raises ValueError for opcodes that `torch.save` does not use, or that exhaust memory."""
  for instruction, argument, _ in pickletools.genops(pickled):
    if instruction.name not in _INSTRUCTIONS.split():
      raise ValueError(f"unexpected opcode {instruction.name}")
    if instruction.name == "LONG_BINPUT" and (argument or 0) > len(pickled):
      raise ValueError(f"memo index {argument} is out of range")


class _RefusedError(Exception):
  """The name of a function that is not allowed."""


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    # A pickle may modify what it gets, so everything here is immutable or newly created.
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch", "Size"):
      return tuple
    if (module, name) == ("argparse", "Namespace"):  # timm stores its training arguments
      return type("Namespace", (), {})
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return lambda tensor, *_: tensor
    if module == "torch" and name in _STORAGES:
      return name
    raise _RefusedError(f"{module}.{name}")

  def persistent_load(self, pid: Any) -> _Storage:
    _, kind, key, _, _ = pid  # "storage", type, entry, device, count
    return _Storage(key, kind)
