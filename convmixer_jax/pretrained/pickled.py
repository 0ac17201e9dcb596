"""Files that `torch.save` writes, read without PyTorch and without running code of theirs.

Such a file is a zip archive of a pickle, `data.pkl`, and of the raw numbers it refers to, `data/0`,
`data/1`... A pickle can call any function by its name. Here it gets the few that tensors and their
containers need, each replaced by one that does nothing but keep its arguments; every other name
ends the reading (`torch.load` with `weights_only` has the same rule).
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

# PyTorch's names for the types of numbers, and NumPy's.
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
# What pickles of protocol 2 consist of.
_INSTRUCTIONS = """
  APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD
  EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE
  NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""


class _Tensor(NamedTuple):
  """What a file says of a tensor; sizes and strides count items of the storage."""

  storage: Any
  offset: Any
  shape: Any
  strides: Any


class _Storage(NamedTuple):
  """Numbers shared by tensors: the archive's entry and their type in PyTorch."""

  key: Any
  kind: Any


def read(path: pathlib.Path) -> Any:
  """What was saved, with read-only NumPy arrays for tensors, in a dictionary of dictionaries too.

  What is in other containers or deeper, such as an optimiser's state, is left unread.

  Raises:
    UserError: if the file is corrupt, is no such file, or its pickle asks for more than tensors.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      return _Reader(path, archive).read()
  except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
    raise UserError(f"{path} is truncated or corrupt: {error}") from None


class _Reader:
  """One open archive, and the storages that were read already."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
    self._path, self._archive = path, archive
    self._storages: dict[_Storage, np.ndarray] = {}
    found = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(found) != 1:
      raise UserError(f"{path} is a zip archive, but not one of PyTorch's: it has no data.pkl")
    self._root = found[0].removesuffix("data.pkl")

  def read(self) -> Any:
    if f"{self._root}byteorder" in self._archive.namelist():
      order = self._entry("byteorder")
      if order != b"little":
        raise UserError(f"{self._path} has numbers in {order!r} byte order; only little is read")
    pickled = self._entry("data.pkl")
    try:
      _check_instructions(pickled)
      return self._with_arrays(_Unpickler(io.BytesIO(pickled)).load())
    except _RefusedError as error:
      raise UserError(
        f"{self._path} asks for {error}, which is no part of weights and may run code; it was not "
        "called. If you trust the file, load it with PyTorch and save its state_dict alone"
      ) from None
    except (UserError, zipfile.BadZipFile):
      raise
    except Exception as error:  # whatever a corrupt pickle makes the unpickler raise
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
      raise ValueError(f"{tensor} is no tensor")
    last = sum((n - 1) * by for n, by in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and tensor.offset + last >= items.size:
      raise ValueError(f"a tensor of shape {tensor.shape} is larger than its {items.size} numbers")
    strides = [items.itemsize * by for by in tensor.strides]
    start = items[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False)

  def _entry(self, name: str) -> bytes:
    try:
      info = self._archive.getinfo(self._root + name)
    except KeyError:
      raise UserError(f"{self._path} is corrupt: {name} is missing in the archive") from None
    if info.compress_type != zipfile.ZIP_STORED:  # else a small file could fill the memory
      raise UserError(f"{self._path} is compressed, which PyTorch's files are not")
    return self._archive.read(info)


def _check_instructions(pickled: bytes) -> None:
  """Raises ValueError for instructions that `torch.save` does not use, or that fill the memory."""
  for instruction, argument, _ in pickletools.genops(pickled):
    if instruction.name not in _INSTRUCTIONS.split():
      raise ValueError(f"the instruction {instruction.name}")
    if instruction.name == "LONG_BINPUT" and (argument or 0) > len(pickled):
      raise ValueError(f"the index {argument}")


class _RefusedError(Exception):
  """The name of a function that is not allowed."""


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    # What a pickle gets, it may also change, so all of it is immutable or made anew.
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch", "Size"):
      return tuple
    if (module, name) == ("argparse", "Namespace"):  # timm keeps the settings of a training
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
