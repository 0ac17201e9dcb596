import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import export, pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained import stablehlo
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

NEEDS = Preprocessing(
  8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.75, ("ant", "bee", "cat", "dog", "elk")
)


@pytest.fixture
def model():
  return ConvMixer(8, 2, 4, 2, 5, activation="relu", norm_epsilon=1e-3)


@pytest.fixture
def variables(model):
  """Variables with non-initial running statistics."""
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  stats = jax.tree.map(
    lambda x: x + jax.random.uniform(jax.random.key(1), x.shape), variables["batch_stats"]
  )
  return {"params": variables["params"], "batch_stats": stats}


@pytest.fixture
def weights(model, variables):
  return TrainedModel(model, variables, "relu", NEEDS)


def test_what_is_written_gives_the_logits(weights, tmp_path):
  out = tmp_path / "new" / "out.stablehlo"
  assert export.export(weights, out) < 1e-5
  image_bhwc = jax.random.normal(jax.random.key(2), (7, 8, 8, 3))
  expected = weights.model.apply(weights.variables, image_bhwc)
  found = jax.export.deserialize(bytearray(out.read_bytes())).call(image_bhwc)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depthwise", [None, "pallas"])
def test_one_stablehlo_file_is_for_all_platforms(model, variables, depthwise):
  """Each platform has its own convolution, and no custom calls are needed."""
  model = model.clone(depthwise=depthwise)
  exported = jax.export.deserialize(bytearray(stablehlo.serialize(model, variables, (8, 8, 3))))
  assert exported.platforms == ("cpu", "cuda", "tpu")
  assert str(exported.in_avals[0].shape[0]) == "b"
  module = exported.mlir_module()
  assert set(re.findall(r"custom_call @(\w+)", module)) <= {"shape_assertion"}
  assert "feature_group_count = 8" in module  # XLA's grouped convolution, on all platforms but CPU
  image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  on_cpu = jax.jit(exported.call).lower(image).compile().as_text()
  assert "feature_group_count" not in on_cpu
  assert "conditional" not in on_cpu  # the platform is resolved at compile time


def test_a_mismatch_fails_and_leaves_nothing(weights, tmp_path, monkeypatch):
  serialize = stablehlo.serialize

  def corrupt(model, variables, shape):
    params = dict(variables["params"])
    params["head"] = {**params["head"], "bias": params["head"]["bias"] + 1e-2}
    return serialize(model, {**variables, "params": params}, shape)

  monkeypatch.setattr(stablehlo, "serialize", corrupt)
  with pytest.raises(UserError, match=r"logits differ by 0\.01"):
    export.export(weights, tmp_path / "out.stablehlo")
  assert not list(tmp_path.iterdir())


def test_logits_that_are_no_numbers_are_a_mismatch():
  with pytest.raises(UserError, match="logits differ by nan"):
    export.difference(lambda x: x, lambda x: x * np.nan, (1, 2))


def test_a_size_that_the_patches_do_not_divide_is_refused(weights, tmp_path):
  message = "images of 9 pixels .* the model's patches of 2: set --image_size=8"
  with pytest.raises(UserError, match=message):
    export.export(weights, tmp_path / "out", 9)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out", "out.json"])
def test_nothing_is_written_over(weights, tmp_path, name):
  (tmp_path / name).write_text("precious")
  with pytest.raises(UserError, match=f"{name} exists already"):
    export.export(weights, tmp_path / "out")
  assert (tmp_path / name).read_text() == "precious"
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  ("out", "message"),
  [
    ("there", "there exists already"),
    ("there/out", r"out cannot be written to \(.*there: Not a directory\)"),
    ("out.safetensors", "is StableHLO. For timm, run .*convmixer_jax.convert"),
    ("out.onnx", "for ONNX, .* docs/use.md"),
  ],
)
def test_the_target_is_checked_before_the_weights_are_read(tmp_path, monkeypatch, out, message):
  monkeypatch.setattr(pretrained, "read", lambda *_, **__: pytest.fail("too late"))
  (tmp_path / "there").touch()
  options = {"init_from": "weights", "out": str(tmp_path / out)}
  monkeypatch.setattr(export.flags, "FLAGS", types.SimpleNamespace(**options))
  with pytest.raises(UserError, match=message):
    export.main(["export"])
  assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_beside_stablehlo_lies_what_its_images_need(weights, tmp_path):
  export.export(weights, tmp_path / "a.bin", 16)
  found = json.loads((tmp_path / "a.bin.json").read_text())
  assert found == {**NEEDS.to_dict(5), "input_size": [3, 16, 16]}
  assert stablehlo.is_export(tmp_path / "a.bin")
  call, told = stablehlo.load(tmp_path / "a.bin")
  assert told == dataclasses.replace(NEEDS, image_size=16)
  assert call(np.zeros((3, 16, 16, 3), np.float32)).shape == (3, 5)
  for text, message in (
    (
      json.dumps(NEEDS.to_dict(5)),
      r"json is corrupt or does not belong to a.bin: input_size is \[3, 8,",
    ),
    ("{", "is corrupt or does not belong to a.bin"),
    (json.dumps({**found, "num_classes": 4}), "num_classes is 4"),
  ):
    (tmp_path / "a.bin.json").write_text(text)
    with pytest.raises(UserError, match=message):
      stablehlo.load(tmp_path / "a.bin")
  (tmp_path / "a.bin.json").unlink()
  with pytest.raises(UserError, match=r"json cannot be read: No such file.*; copy both"):
    stablehlo.load(tmp_path / "a.bin")
  (tmp_path / "a.bin").write_bytes(b"no flatbuffer")
  with pytest.raises(UserError, match=r"a.bin cannot be read: \w+: ") as error:
    stablehlo.load(tmp_path / "a.bin")
  assert "\n" not in str(error.value)


def test_what_weights_do_not_tell_is_not_made_up(weights, tmp_path, caplog):
  unknown = dataclasses.replace(weights, activation=None, preprocessing=None)
  with pytest.raises(UserError, match="give --activation=gelu, or --activation=gelu_tanh, or"):
    export.export(unknown, tmp_path / "a", 8)
  assert not list(tmp_path.iterdir())
  told = dataclasses.replace(unknown, activation="relu")
  export.export(told, tmp_path / "b", 8)
  assert "b.json is not written: the weights do not say" in caplog.text
  assert not (tmp_path / "b.json").exists()
