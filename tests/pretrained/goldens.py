import pathlib

from flax import traverse_util
import numpy as np

from convmixer_jax import ConvMixer, pretrained
from convmixer_jax.pretrained import safetensors as files
from convmixer_jax.pretrained.trained import Preprocessing

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
