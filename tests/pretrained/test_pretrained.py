import http.server
import io
import json
import logging
import os
import pathlib
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import types
import zipfile

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy

from convmixer_jax import ConvMixer, create_model, pretrained
from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint.manager import Checkpoints
from convmixer_jax.checkpoint.state import create_state
from convmixer_jax.errors import UserError
from convmixer_jax.model.names import settings_of
from convmixer_jax.parallel import sharding
from convmixer_jax.pretrained import pickled
from convmixer_jax.pretrained import safetensors as files
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel, imagenet
from convmixer_jax.zoo import replace_head

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MODELS = {
  "gelu_odd": ConvMixer(12, 2, 5, 2, 7),
  "relu_odd": ConvMixer(8, 3, 3, 2, 7, "relu"),
  "gelu_even": ConvMixer(12, 2, 4, 1, 7),
}
NEEDS = Preprocessing(32, (0.49, 0.48, 0.45), (0.2, 0.3, 0.4), 0.875, tuple("abcdefg"))
SUFFIXES = (".pth", ".safetensors")  # in the authors' layout and in timm's


def golden_file(name="gelu_odd", suffix=".safetensors"):
  return GOLDEN / f"pretrained_{name}{suffix}"


def load_golden(name="gelu_odd", suffix=".safetensors"):
  return pretrained.load_torch(golden_file(name, suffix), activation=MODELS[name].activation)


def golden_arrays(name="gelu_odd"):
  return files.read(golden_file(name))[0]


def assert_same_bits(a, b):
  a, b = (traverse_util.flatten_dict(tree) for tree in (a, b))
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype, key
    np.testing.assert_array_equal(a[key], b[key], err_msg=str(key), strict=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_pytorchs(name, suffix):
  golden = np.load(golden_file(name, ".npz"))
  model, variables = load_golden(name, suffix)
  assert model == MODELS[name]
  logits = model.apply(variables, golden["image"])
  np.testing.assert_allclose(logits, golden["eval_logits"], atol=1e-5)
  logits, _ = model.apply(variables, golden["image"], train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(logits, golden["train_logits"], atol=1e-5)


@pytest.mark.parametrize("layout", ["timm", "sequential"])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_exact_and_notes_what_weights_do_not_tell(tmp_path, caplog, name, layout):
  model, variables = load_golden(name)
  model = model.clone(norm_epsilon=1e-3)
  pretrained.save_torch(tmp_path / "model.safetensors", model, variables, layout=layout)
  again, found = pretrained.load_torch(tmp_path / "model.safetensors")
  assert again == model
  assert_same_bits(found, variables)
  assert "assuming" not in caplog.text and "eps=0.001" in caplog.text
  assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", MODELS)
def test_written_files_are_pytorchs_bit_by_bit(tmp_path, name):
  """Compares with files written by PyTorch."""
  model, variables = load_golden(name)
  for layout, oracle in (
    ("timm", safetensors.numpy.load_file(golden_file(name))),
    ("sequential", _as_sequential(safetensors.numpy.load_file(golden_file(name)), model.depth)),
  ):
    file = tmp_path / "a.safetensors"
    pretrained.save_torch(file, model, variables, layout=layout, preprocessing=NEEDS)
    assert_same_bits(safetensors.numpy.load_file(file), oracle)


def _as_sequential(arrays, depth):
  renamed = {}
  for key, array in arrays.items():
    first, _, rest = key.partition(".")
    if first == "blocks":
      i, _, rest = rest.partition(".")
      rest = f"{int(i) + 3}.{rest}"
    renamed[f"{depth + 5}.{rest}" if first == "head" else rest] = array
  return renamed


@pytest.mark.parametrize("layout", ["timm", "sequential"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pytorch_loads_written_files_strictly(tmp_path, monkeypatch, suffix, layout):
  torch = pytest.importorskip("torch")
  safetensors_torch = pytest.importorskip("safetensors.torch")
  monkeypatch.syspath_prepend(GOLDEN)
  import make_pretrained

  model, variables = load_golden("gelu_odd")
  file = tmp_path / f"model{suffix}"
  pretrained.save_torch(file, model, variables, layout=layout)
  read = torch.load if suffix == ".pth" else safetensors_torch.load_file
  theirs = make_pretrained.conv_mixer(*make_pretrained.MODELS["gelu_odd"])
  (make_pretrained.as_timm(theirs) if layout == "timm" else theirs).load_state_dict(read(file))
  golden = np.load(golden_file("gelu_odd", ".npz"))
  image = torch.from_numpy(golden["image"]).permute(0, 3, 1, 2)
  logits = theirs.eval()(image).detach().numpy()
  np.testing.assert_allclose(logits, golden["eval_logits"], atol=1e-6)
  assert_same_bits(pretrained.load_torch(file, activation="gelu")[1], variables)


def test_a_trainings_averaged_weights_are_taken(caplog):
  with caplog.at_level(logging.INFO):
    _, variables = pretrained.load_torch(GOLDEN / "pretrained_training.pth.tar")
  assert_same_bits(variables, load_golden()[1])
  assert "weights in 'state_dict_ema'; ignoring: epoch, arch, args, state_dict" in caplog.text


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path, caplog, dtype):
  arrays = {key: a.astype(dtype) if a.ndim else a for key, a in golden_arrays().items()}
  files.write(tmp_path / "half.safetensors", arrays, {})
  with caplog.at_level(logging.INFO):
    _, variables = pretrained.load_torch(tmp_path / "half.safetensors")
  head = variables["params"]["head"]["kernel"]
  np.testing.assert_array_equal(head, arrays["head.weight"].T.astype(np.float32), strict=True)
  assert f"{np.dtype(dtype)} was converted to float32" in caplog.text


def test_without_a_head_the_model_gives_features(tmp_path):
  arrays = {key: a for key, a in golden_arrays().items() if not key.startswith("head")}
  files.write(tmp_path / "body.safetensors", arrays, {})
  model, variables = pretrained.load_torch(tmp_path / "body.safetensors", activation="gelu")
  image = np.load(golden_file("gelu_odd", ".npz"))["image"]
  assert model.num_classes == 0 and model.apply(variables, image).shape == (4, 12)
  pretrained.save_torch(tmp_path / "again.safetensors", model, variables)
  assert_same_bits(files.read(tmp_path / "again.safetensors")[0], arrays)


def test_the_files_name_tells_the_activation(tmp_path, caplog, monkeypatch):
  settings = {"dim": 8, "depth": 3, "kernel_size": 3, "patch_size": 2, "activation": "relu"}
  models = {"convmixer_8_3": {**settings, "num_classes": 7}}
  monkeypatch.setattr("convmixer_jax.model.names.settings_of_models", lambda: models)
  weights = golden_file("relu_odd").read_bytes()
  for name, activation in (("convmixer_8_3_relu", "relu"), ("model", "gelu")):
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(weights)
    assert pretrained.load_torch(file)[0].activation == activation
    assert ("assuming" in caplog.text) == (name == "model")
  models["convmixer_8_3"]["kernel_size"] = 5  # the file no longer matches the model
  assert pretrained.load_torch(tmp_path / "convmixer_8_3_relu.safetensors")[0].activation == "gelu"


def _without(key):
  return {name: a for name, a in golden_arrays().items() if name != key}


def _changed(**arrays):
  return golden_arrays() | {key.replace("__", "."): a for key, a in arrays.items()}


WRONG_WEIGHTS = {
  "missing": (_without("blocks.1.0.fn.2.running_var"), "missing: blocks.1.0.fn.2.running_var"),
  "a whole block missing": (
    {key: a for key, a in golden_arrays().items() if not key.startswith("blocks.0.")},
    "blocks.0.0.fn.0.weight of a ConvMixer is missing",
  ),
  "extra": (_changed(head_dist__bias=np.zeros(7, np.float32)), "unexpected: head_dist.bias"),
  "extra counter": (_changed(a__num_batches_tracked=np.zeros(())), "unexpected: a.num_batches"),
  "another kernel": (
    _changed(**{"blocks__1__0__fn__0__weight": np.zeros((12, 1, 3, 3), np.float32)}),
    r"blocks.1.0.fn.0.weight has shape \(12, 1, 3, 3\), expected \(12, 1, 5, 5\)",
  ),
  "wrong classes": (
    _changed(head__bias=np.zeros(10, np.float32)),
    r"head.bias has shape \(10,\), expected \(7,\)",
  ),
  "another head": (
    _changed(head__weight=np.zeros((7, 12, 1, 1), np.float32)),
    r"head.weight has shape \(7, 12, 1, 1\), expected 2",
  ),
  "float64": (_changed(head__bias=np.zeros(7)), "head.bias is float64; allowed: float32, "),
  "integers": (_changed(head__bias=np.zeros(7, np.int8)), "head.bias is int8; allowed"),
  "a ResNet": (
    {"conv1.weight": np.zeros((8, 3, 7, 7)), "bn1.weight": np.zeros(8), "fc.bias": np.zeros(9)},
    "not a ConvMixer; its names are bn1.weight, conv1.weight, fc.bias",
  ),
  "a ViT": (
    {"blocks.0.attn.qkv.weight": np.zeros((9, 3)), "head.weight": np.zeros((7, 3))},
    "stem.0.weight of a ConvMixer is missing",
  ),
  "nothing": ({}, "not a ConvMixer; its names are none"),
  "twice": (_changed(module__head__bias=np.zeros(7)), "occur twice"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(tmp_path, wrong):
  arrays, message = WRONG_WEIGHTS[wrong]
  files.write(tmp_path / "wrong.safetensors", arrays, {"format": "pt"})
  with pytest.raises(UserError, match=f"wrong.safetensors does not fit: .*{message}"):
    pretrained.load_torch(tmp_path / "wrong.safetensors")


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


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    ({"activation": "swish"}, "activation is 'swish'; allowed: gelu"),
    ({"norm_epsilon": "x"}, "norm_epsilon is 'x', not a number"),
  ],
)
def test_wrong_notes_are_refused(tmp_path, metadata, message):
  files.write(tmp_path / "a.safetensors", golden_arrays(), metadata)
  with pytest.raises(UserError, match=message):
    pretrained.load_torch(tmp_path / "a.safetensors")


def test_preprocessing_and_names_are_noted_in_timms_terms(tmp_path):
  model, variables = load_golden()
  file = tmp_path / "a.safetensors"
  pretrained.save_torch(file, model, variables, preprocessing=NEEDS)
  assert pretrained.read(file).preprocessing == NEEDS
  assert json.loads(files.read(file)[1]["pretrained_cfg"]) == {
    "input_size": [3, 32, 32], "mean": [0.49, 0.48, 0.45], "std": [0.2, 0.3, 0.4],
    "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic", "num_classes": 7,
    "label_names": list("abcdefg"),
  }  # fmt: skip
  pretrained.save_torch(file, model, variables)
  assert pretrained.read(file).preprocessing is None


def test_an_assumed_activation_is_not_noted(tmp_path, caplog):
  """A file that is read and written again states no more than before."""
  pretrained.save(tmp_path / "a.safetensors", pretrained.read(golden_file("relu_odd")))
  assert files.read(tmp_path / "a.safetensors")[1].keys() == {"format", "norm_epsilon"}
  caplog.clear()
  pretrained.load_torch(tmp_path / "a.safetensors")
  assert "a.safetensors does not state its activation; assuming 'gelu'. If that is wrong" in (
    caplog.text
  )
  assert pretrained.load(tmp_path / "a.safetensors", activation="relu")[0] == MODELS["relu_odd"]


def test_a_released_files_name_tells_the_preprocessing(tmp_path):
  """Only if the sizes match the name and there are a thousand classes."""
  for name, num_classes, expected in (
    ("convmixer_1024_20_ks9_p14", 1000, imagenet()),
    ("convmixer_1024_20_ks9_p14", 10, None),
    ("convmixer_512_12_ks8_p7", 1000, None),
  ):
    settings = {**settings_of(name), "num_classes": num_classes}
    shrunk = {**settings, "dim": 8, "depth": 1}
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr("convmixer_jax.model.names.settings_of_models", lambda n=name, s=shrunk: {n: s})
      model = ConvMixer(**shrunk)
      variables = model.init(jax.random.key(0), np.zeros((1, 14, 14, 3), np.float32))
      file = tmp_path / f"{name}_{num_classes}.safetensors"
      pretrained.save(file, TrainedModel(model, variables, None))
      assert pretrained.told(file).preprocessing == expected


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"mean": [0.5]}, r"mean is \[0.5\], which does not fit 3 channels"),
    ({"std": [1, 0, 1]}, r"std is \[1, 0, 1\]"),
    ({"std": None}, "NoneType"),
    ({"input_size": [3, 32, 48]}, r"input_size is \[3, 32, 48\]"),
    ({"input_size": [32]}, "not enough values"),
    ({"crop_pct": 0}, "crop_pct is 0"),
    ({"crop_mode": "squash"}, "crop_mode is 'squash'.*'center'"),
    ({"interpolation": "bilinear"}, "interpolation is 'bilinear'.*'bicubic'"),
    ({"num_classes": 8}, "num_classes is 8, which does not fit .* 7 classes"),
    ({"label_names": ["a"]}, r"label_names is \['a'\]"),
  ],
)
def test_wrong_preprocessing_is_refused(tmp_path, change, message):
  text = json.dumps({**NEEDS.to_dict(7), **change})
  files.write(tmp_path / "a.safetensors", golden_arrays(), {"pretrained_cfg": text})
  with pytest.raises(UserError, match=rf"a\.safetensors .*pretrained_cfg is invalid.*{message}"):
    pretrained.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_corrupt_preprocessing_is_refused(tmp_path, text):
  files.write(tmp_path / "a.safetensors", golden_arrays(), {"pretrained_cfg": text})
  with pytest.raises(UserError, match="pretrained_cfg is invalid"):
    pretrained.load(tmp_path / "a.safetensors")


def test_wrong_arguments_are_refused(tmp_path, monkeypatch):
  model, variables = load_golden()
  file = tmp_path / "a.safetensors"
  with pytest.raises(ValueError, match="activation is 'swish'; allowed: gelu"):
    pretrained.load_torch(golden_file(), activation="swish")
  with pytest.raises(ValueError, match="layout is 'flax'; allowed: timm, sequential"):
    pretrained.save_torch(file, model, variables, layout="flax")
  with pytest.raises(ValueError, match=r"allowed suffixes: \.safetensors, .pth"):
    pretrained.save_torch(tmp_path / "a.npz", model, variables)
  with pytest.raises(UserError, match="missing: batch_stats/blocks_0/depthwise_norm/mean"):
    pretrained.save_torch(file, model, {"params": variables["params"]})
  with pytest.raises(UserError, match="unexpected: batch_stats/blocks_1"):
    pretrained.save_torch(file, model.clone(depth=1), variables)
  with pytest.raises(UserError, match=r"head/bias has shape \(7,\), the model expects \(9,\)"):
    pretrained.save_torch(file, model.clone(num_classes=9), variables)
  with pytest.raises(UserError, match="missing is not a directory"):
    pretrained.save_torch(tmp_path / "missing" / "a.safetensors", model, variables)
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(UserError, match=r"pip install torch; or end its name in \.safetensors"):
    pretrained.save_torch(tmp_path / "a.pth", model, variables)
  assert not list(tmp_path.iterdir())


def test_another_head_is_fresh_and_all_else_is_kept(caplog):
  model, variables = load_golden()
  with caplog.at_level(logging.INFO):
    changed, found = replace_head(model, variables, 5)
  assert "dropped the head for 7 classes; the new one, for 5, is random" in caplog.text
  assert changed == model.clone(num_classes=5)
  head = found["params"].pop("head")
  assert head["kernel"].shape == (12, 5) and 0 < np.abs(head["kernel"]).max() <= 12**-0.5
  kept = {name: value for name, value in variables["params"].items() if name != "head"}
  assert_same_bits(found, {**variables, "params": kept})
  assert "head" in variables["params"]
  assert "head" not in replace_head(model, variables, 0)[1]["params"]
  assert replace_head(model, variables, 7)[1] is variables


@pytest.fixture
def hub(monkeypatch):
  """A fake hub with `hub.files` by repository; `hub.asked` collects the requests."""
  stand_in = types.ModuleType("huggingface_hub")
  stand_in.files, stand_in.cached, stand_in.asked = {}, {}, []

  def get_hf_file_metadata(url, timeout):
    if url[0] not in stand_in.files:
      logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s [Retry 1/5].")
      raise FileNotFoundError("cannot find the requested files in the local cache.\nmore")

  def hf_hub_download(repository, file):
    stand_in.asked.append((repository, file))
    return str(stand_in.files[repository])

  stand_in.try_to_load_from_cache = lambda repository, file: stand_in.cached.get(repository)
  stand_in.hf_hub_url = lambda repository, file: (repository, file)
  stand_in.get_hf_file_metadata = get_hf_file_metadata
  stand_in.hf_hub_download = hf_hub_download
  monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
  return stand_in


@pytest.mark.parametrize("source", ["convmixer_768_32", "timm/convmixer_768_32.in1k"])
def test_a_name_brings_the_hubs_file_and_the_activation(hub, caplog, source):
  hub.files["timm/convmixer_768_32.in1k"] = golden_file("relu_odd")
  model, variables = pretrained.load(source)
  assert hub.asked == [("timm/convmixer_768_32.in1k", "model.safetensors")]
  assert model == MODELS["relu_odd"] and "assuming" not in caplog.text
  assert pretrained.read(source).preprocessing == imagenet()
  assert_same_bits(variables, load_golden("relu_odd")[1])


def test_create_model_loads_released_weights(hub, caplog):
  hub.files["timm/convmixer_768_32.in1k"] = golden_file("relu_odd")
  with caplog.at_level(logging.INFO):
    model, variables = create_model("convmixer_768_32", pretrained=True, num_classes=3, dropout=0.1)
  assert model == MODELS["relu_odd"].clone(num_classes=3, dropout=0.1)
  assert variables["params"]["head"]["bias"].shape == (3,) and "is random" in caplog.text
  oracle = load_golden("relu_odd")[1]
  assert_same_bits(variables["batch_stats"], oracle["batch_stats"])
  for wrong in ({"kernel_size": 5}, {"activation": "gelu"}, {"in_chans": 1}):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* does not match the released"):
      create_model("convmixer_768_32", pretrained=True, **wrong)


def test_cached_weights_need_no_network(hub):
  hub.cached["timm/convmixer_768_32.in1k"] = str(golden_file("relu_odd"))
  hub.get_hf_file_metadata = hub.hf_hub_download = None  # neither is called
  assert pretrained.load("convmixer_768_32")[0] == MODELS["relu_odd"]


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, monkeypatch):
  """The timeout applies even to DNS lookups, which ignore the timeouts of libraries."""
  release = threading.Event()
  hub.get_hf_file_metadata = lambda url, timeout: release.wait(60)
  monkeypatch.setattr("convmixer_jax.pretrained.hub._SECONDS", 0.1)
  start = time.monotonic()
  with pytest.raises(UserError, match=r"cannot fetch .*: no response within 0.1 seconds\. Unset"):
    pretrained.load("convmixer_768_32")
  assert time.monotonic() - start < 10 and not hub.asked
  release.set()


@pytest.mark.slow
@pytest.mark.parametrize("port", ["closed", "silent"])
def test_the_command_without_a_network_ends_in_one_line(tmp_path, port):
  """Prints the package's reason once, without the warnings of its retries."""
  pytest.importorskip("huggingface_hub")
  (tmp_path / "a.jpg").touch()
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    if port == "silent":
      listener.listen(50)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    start = time.monotonic()
    run = subprocess.run(
      [sys.executable, "-m", "convmixer_jax.predict", "--init_from=convmixer_768_32", "a.jpg"],
      cwd=tmp_path, capture_output=True, text=True, timeout=120,
      env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
           "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
  assert time.monotonic() - start < 40  # at most 8 for the hub; the rest is imports
  assert run.returncode == 1
  (line,) = run.stderr.splitlines()
  reason = "Connection refused" if port == "closed" else "timed out|no response within 8 seconds"
  assert re.match(f"error: cannot fetch timm/convmixer_768_32.in1k: .*({reason})", line), line


class Hub(http.server.BaseHTTPRequestHandler):
  """Responds like the hub, for one file: the golden one."""

  content = golden_file("relu_odd").read_bytes()

  def do_HEAD(self):
    self.send_response(200)
    self.send_header("ETag", '"etag"')
    self.send_header("X-Repo-Commit", "0" * 40)
    self.send_header("Content-Length", str(len(self.content)))
    self.end_headers()

  def do_GET(self):
    self.do_HEAD()
    self.wfile.write(self.content)

  def log_message(self, *args):
    pass


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_to_only_costs_the_cache():
  pytest.importorskip("huggingface_hub")
  code = (
    "from convmixer_jax import pretrained;print(pretrained.load('convmixer_768_32')[0].activation)"
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = subprocess.run(
      [sys.executable, "-c", code],
      capture_output=True, text=True, timeout=120,
      env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
           "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
           "HF_HOME": "/proc/none"},  # not even root can create a directory there
    )  # fmt: skip
    server.shutdown()
  assert (run.returncode, run.stdout) == (0, "relu\n"), run.stderr
  assert run.stderr.count("cannot be cached for the next start") == 1


def test_what_to_do_when_weights_cannot_be_fetched(hub, monkeypatch, caplog):
  with pytest.raises(UserError, match=r"cannot fetch timm/convmixer_1536_20.in1k: .*cache\. Unset"):
    create_model("convmixer_1536_20", pretrained=True)
  assert not caplog.text  # no warnings from the package
  with pytest.raises(UserError, match="no released weights; available: convmixer_1536_20,"):
    create_model("convmixer_256_8_ks5_p2_cifar10", pretrained=True)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"pip install huggingface_hub; or download .* and give its"):
    pretrained.load("convmixer_768_32")


def test_the_hubs_package_in_offline_mode(tmp_path, monkeypatch):
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(UserError, match=r"cannot fetch timm/convmixer_768_32\.in1k: .*HF_HUB"):
    pretrained.load("convmixer_768_32")


def test_load_takes_a_runs_newest_checkpoint(tmp_path, configs):
  config = config_lib.read(configs / "digits.py")
  config.model.update(depth=1, dim=8, norm_epsilon=1e-3)
  config_lib.write_json(config, tmp_path / "config.json")
  mesh = sharding.make_mesh()
  optimizer = optax.sgd(0.1)
  model = ConvMixer(8, 1, config.model.kernel_size, config.model.patch_size, 10, norm_epsilon=1e-3)
  state = create_state(model, optimizer, mesh, seed=3, image_shape=(8, 8, 1))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(4, state.replace(params=jax.tree.map(jnp.zeros_like, state.params)))
    checkpoints.save(5, state)
  found_model, found = pretrained.load(tmp_path)
  assert found_model == model
  assert_same_bits(found, state.variables())
  told = pretrained.read(tmp_path).preprocessing
  assert told == Preprocessing(8, (0.3053,), (0.3761,), 1.0, tuple("0123456789"))
  assert found["params"]["stem"]["kernel"].devices() == {jax.devices()[0]}


def test_load_says_what_a_source_can_be(tmp_path):
  assert_same_bits(pretrained.load(golden_file())[1], load_golden()[1])
  with pytest.raises(UserError, match=r"is not a file, .* did you mean convmixer_768_32 "):
    pretrained.load("convmixr_768_32")
  with pytest.raises(UserError, match="is a directory, but not the workdir"):
    pretrained.load(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match="is not set"):
    pretrained.load(tmp_path)
