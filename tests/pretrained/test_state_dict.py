import logging

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from convmixer_jax import pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.pretrained import safetensors as files
from tests.pretrained.goldens import (
  GOLDEN,
  MODELS,
  NEEDS,
  SUFFIXES,
  assert_same_bits,
  golden_arrays,
  golden_file,
  load_golden,
)


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
