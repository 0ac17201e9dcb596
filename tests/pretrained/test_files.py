import json
import sys

import jax
import numpy as np
import pytest

from convmixer_jax import ConvMixer, pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.model.names import settings_of
from convmixer_jax.pretrained import safetensors as files
from convmixer_jax.pretrained.trained import TrainedModel, imagenet
from tests.pretrained.goldens import MODELS, NEEDS, golden_arrays, golden_file, load_golden


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
  with pytest.raises(UserError, match=r"pip install .*torch.*; or end .* in \.safetensors"):
    pretrained.save_torch(tmp_path / "a.pth", model, variables)
  assert not list(tmp_path.iterdir())
