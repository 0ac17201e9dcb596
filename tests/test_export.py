import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import export, pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer


@pytest.fixture
def model():
  return ConvMixer(8, 2, 4, 2, 5, activation="relu", norm_epsilon=1e-3)


@pytest.fixture
def variables(model):
  """With statistics that are not those of the initialisation."""
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  stats = jax.tree.map(
    lambda x: x + jax.random.uniform(jax.random.key(1), x.shape), variables["batch_stats"]
  )
  return {"params": variables["params"], "batch_stats": stats}


@pytest.mark.parametrize("format", export.FORMATS)
def test_what_is_written_gives_the_logits(model, variables, tmp_path, format):
  out = tmp_path / "new" / f"out.{format}"
  assert export.export(model, variables, out, format, 8) < 1e-5
  image_bhwc = jax.random.normal(jax.random.key(2), (7, 8, 8, 3))
  expected = model.apply(variables, image_bhwc)
  if format == "stablehlo":
    found = jax.export.deserialize(bytearray(out.read_bytes())).call(image_bhwc)
  else:
    again, found = pretrained.load(out)
    assert (again.activation, again.num_classes) == ("relu", 5)
    found = again.apply(found, image_bhwc)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depthwise", [None, "pallas"])
def test_one_stablehlo_file_is_for_all_platforms(model, variables, depthwise):
  """Each has its convolution of its own, and nothing is called that a program may lack."""
  model = model.clone(depthwise=depthwise)
  exported = jax.export.deserialize(bytearray(export.to_stablehlo(model, variables, (8, 8, 3))))
  assert exported.platforms == ("cpu", "cuda", "tpu")
  assert str(exported.in_avals[0].shape[0]) == "b"
  module = exported.mlir_module()
  assert set(re.findall(r"custom_call @(\w+)", module)) <= {"shape_assertion"}
  assert "feature_group_count = 8" in module  # XLA's grouped convolution, for all but CPU
  image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  on_cpu = jax.jit(exported.call).lower(image).compile().as_text()
  assert "feature_group_count" not in on_cpu
  assert "conditional" not in on_cpu  # the platform is known when it is compiled


@pytest.mark.parametrize("format", export.FORMATS)
def test_a_mismatch_fails_and_leaves_nothing(model, variables, tmp_path, monkeypatch, format):
  write = export.FORMATS[format]

  def damaged(path, model, variables, shape):
    params = dict(variables["params"])
    params["head"] = {**params["head"], "bias": params["head"]["bias"] + 1e-2}
    return write(path, model, {**variables, "params": params}, shape)

  monkeypatch.setitem(export.FORMATS, format, damaged)
  with pytest.raises(UserError, match=r"logits differ by 0\.01"):
    export.export(model, variables, tmp_path / f"out.{format}", format, 8)
  assert not list(tmp_path.iterdir())


def test_logits_that_are_no_numbers_are_a_mismatch():
  with pytest.raises(UserError, match="logits differ by nan"):
    export.difference(lambda x: x, lambda x: x * np.nan, (1, 2))


@pytest.mark.parametrize(
  ("format", "size", "message"),
  [
    ("onnx", 8, "onnx is not offered: .*safetensors.*torch.onnx.export"),
    ("tflite", 8, "tflite does not exist; allowed: stablehlo, safetensors, orbax"),
    ("safetensors", 8, r"out has to end in \.safetensors"),
    ("stablehlo", 9, "images of 9 pixels cannot be cut into the model's patches of 2"),
  ],
)
def test_what_cannot_be_written_is_refused(model, variables, tmp_path, format, size, message):
  with pytest.raises(UserError, match=message):
    export.export(model, variables, tmp_path / "out", format, size)
  assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(model, variables, tmp_path):
  (tmp_path / "out").write_text("precious")
  with pytest.raises(UserError, match="exists already"):
    export.export(model, variables, tmp_path / "out", "stablehlo", 8)
  assert (tmp_path / "out").read_text() == "precious"
