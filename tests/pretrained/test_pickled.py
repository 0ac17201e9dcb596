import io
import logging
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from convmixer_jax import pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.pretrained import pickled
from tests.pretrained.goldens import GOLDEN, assert_same_bits, golden_file, load_golden


class Runs:
  """An object whose pickle creates a directory when loaded."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


class TorchPickler(pickle._Pickler):
  """Writes references to PyTorch names, which cannot be imported here."""

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, type) and obj.__module__.startswith("torch"):
      self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())
    else:
      super().save(obj, save_persistent_id)

  def persistent_id(self, obj):
    return obj.id if isinstance(obj, Storage) else None


class Storage:
  def __init__(self, kind="FloatStorage", entry="0"):
    self.id = ("storage", torch_global("torch", kind), entry, "cpu", 4)


class Tensor:
  def __init__(self, *arguments, function=("torch._utils", "_rebuild_tensor_v2")):
    self.arguments, self.function = arguments, torch_global(*function)

  def __reduce__(self):
    return self.function, (*self.arguments, False, None)


def torch_global(module, name):
  return type(name, (), {"__module__": module, "__qualname__": name})


def torch_file(path, value, compression=zipfile.ZIP_STORED, instructions=None, **entries):
  """Writes what `torch.save` would for `value`, with one storage of four values."""
  stream = io.BytesIO()
  if instructions is None:
    TorchPickler(stream, protocol=2).dump(value)
  else:
    stream.write(instructions)
  entries = {"data/0": np.arange(4, dtype=np.float32).tobytes(), **entries}
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("model/data.pkl", stream.getvalue())
    for name, data in entries.items():
      archive.writestr(f"model/{name}", data)
  return path


def test_tensors_are_read_as_views_of_their_storage(tmp_path):
  weights = {"a": Tensor(Storage(), 0, (2, 2), (1, 2)), "b": {"c": Tensor(Storage(), 3, (), ())}}
  found = pickled.read(torch_file(tmp_path / "a.pth", weights))
  np.testing.assert_array_equal(found["a"], [[0, 2], [1, 3]])
  np.testing.assert_array_equal(found["b"]["c"], 3)


WRONG_FILES = {
  "a directory": (lambda path: path.mkdir(), "is a directory"),
  "not there": (lambda path: None, "cannot be read: No such file"),
  "empty": (lambda path: path.write_bytes(b""), "is empty"),
  "text": (lambda path: path.write_text("<html>Not found</html>" * 9), "is not a weights file"),
  "truncated safetensors": (
    lambda path: path.write_bytes(golden_file().read_bytes()[:-1]),
    "truncated or corrupt: .*file not fully covered",
  ),
  "truncated header": (
    lambda path: path.write_bytes(golden_file().read_bytes()[:100]),
    "truncated or corrupt: .*invalid header length",
  ),
  "corrupt header": (
    lambda path: path.write_bytes(golden_file().read_bytes().replace(b'"F32"', b'"F31"')),
    "truncated or corrupt: .*unknown variant `F31`",
  ),
  "overlapping": (
    lambda path: path.write_bytes(
      golden_file().read_bytes().replace(b'"shape":[7]', b'"shape":[6]', 1)
    ),
    "truncated or corrupt: .*invalid shape, data type, or offset",
  ),
  "numbers of eight bits": (
    lambda path: path.write_bytes(
      safetensors.numpy.save({"a": np.zeros(3, ml_dtypes.float8_e4m3fn)})
    ),
    "truncated or corrupt: .*float8_e4m3fn",
  ),
  "truncated pth": (
    lambda path: path.write_bytes(golden_file(suffix=".pth").read_bytes()[:-1000]),
    "truncated or corrupt",
  ),
  "a flipped bit": (
    lambda path: path.write_bytes(
      golden_file(suffix=".pth").read_bytes()[:9000]
      + b"\xff\xff"
      + golden_file(suffix=".pth").read_bytes()[9002:]
    ),
    "truncated or corrupt",
  ),
  "another zip": (
    lambda path: (
      np.savez(path.with_suffix(".npz"), a=np.zeros(3)) or path.with_suffix(".npz").rename(path)
    ),
    "not from PyTorch: it has no data.pkl",
  ),
  "runs code": (
    lambda path: torch_file(path, {"state_dict": Runs(path.with_name("ran"))}),
    r"refers to (posix|nt)\.mkdir, which .* may run code; it was not called",
  ),
  "bare pickle that runs code": (
    lambda path: path.write_bytes(pickle.dumps(Runs(path.with_name("ran")))),
    "bare pickle, which is not supported. If PyTorch before 1.6",
  ),
  "a whole module": (
    lambda path: torch_file(path, Tensor(function=("torch.nn.modules.conv", "Conv2d"))),
    "refers to torch.nn.modules.conv.Conv2d",
  ),
  "a tensor alone": (
    lambda path: torch_file(path, Tensor(Storage(), 0, (4,), (1,))),
    "does not fit: it is not a dictionary of weights, but a ndarray",
  ),
  "a list among weights": (
    lambda path: torch_file(path, {"stem.0.weight": [1]}),
    "does not fit: it is not a dictionary of weights: 'stem.0.weight' is a list",
  ),
  "fills the memory": (
    lambda path: torch_file(path, {}, instructions=b"\x80\x02}r\xff\xff\xff\xff."),
    "corrupt data.pkl: ValueError: memo index 4294967295",
  ),
  "a later protocol": (
    lambda path: torch_file(path, {}, instructions=b"\x80\x04\x8e\0\0\0\0\0\0\0\0."),
    "corrupt data.pkl: ValueError: unexpected opcode BINBYTES8",
  ),
  "beyond the storage": (
    lambda path: torch_file(path, {"a": Tensor(Storage(), 1, (4,), (1,))}),
    r"a tensor of shape \(4,\) exceeds its 4 stored values",
  ),
  "before the storage": (
    lambda path: torch_file(path, {"a": Tensor(Storage(), 3, (4,), (-1,))}),
    "is not a valid tensor",
  ),
  "no storage": (
    lambda path: torch_file(path, {"a": Tensor(Storage(entry="7"), 0, (4,), (1,))}),
    "data/7 is missing",
  ),
  "compressed": (
    lambda path: torch_file(path, {}, zipfile.ZIP_DEFLATED),
    "is compressed, which files of PyTorch never are",
  ),
  "big-endian": (lambda path: torch_file(path, {}, byteorder=b"big"), "b'little' is supported"),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_files_that_are_no_weights_are_refused_and_run_nothing(tmp_path, wrong):
  make, message = WRONG_FILES[wrong]
  path = tmp_path / "wrong.pth"
  make(path)
  with pytest.raises(UserError, match=f"wrong.pth.*{message}"):
    pretrained.load_torch(path)
  assert not (tmp_path / "ran").exists()


def test_the_pickle_that_runs_code_would_have(tmp_path):
  pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
  assert (tmp_path / "ran").exists()


def test_a_trainings_averaged_weights_are_taken(caplog):
  with caplog.at_level(logging.INFO):
    _, variables = pretrained.load_torch(GOLDEN / "pretrained_training.pth.tar")
  assert_same_bits(variables, load_golden()[1])
  assert "weights in 'state_dict_ema'; ignoring: epoch, arch, args, state_dict" in caplog.text
