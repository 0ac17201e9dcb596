import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import ConvMixer, create_model, list_models
from convmixer_jax.errors import UserError
from convmixer_jax.model.names import list_released, settings_of

ROOT = pathlib.Path(__file__).parents[1]
# Numbers of trainable parameters, counted in PyTorch and timm.
COUNTS = {
  "convmixer_1536_20": 51_625_960,
  "convmixer_768_32": 21_110_248,
  "convmixer_1024_20_ks9_p14": 24_383_464,
  "convmixer_512_12_ks8_p7": 4_165_608,
  "convmixer_512_16_ks8_p7": 5_357_544,
  "convmixer_1024_12_ks8_p7": 14_621_672,
  "convmixer_1024_16_ks9_p7": 19_381_224,
  "convmixer_1536_20_ks3_p7": 49_414_120,
  "convmixer_1536_20_ks9_p14": 52_303_336,
  "convmixer_1536_24_ks9_p14": 62_275_048,
  "convmixer_128_4_ks8_p1_cifar10": 103_434,
  "convmixer_128_8_ks7_p2_cifar10": 190_602,
  "convmixer_128_8_ks8_p1_cifar10": 204_810,
  "convmixer_128_12_ks8_p1_cifar10": 306_186,
  "convmixer_256_4_ks8_p1_cifar10": 337_930,
  "convmixer_256_8_ks5_p2_cifar10": 594_186,
  "convmixer_256_8_ks7_p2_cifar10": 643_338,
  "convmixer_256_8_ks8_p1_cifar10": 671_754,
  "convmixer_256_8_ks9_p1_cifar10": 706_570,
  "convmixer_256_12_ks8_p1_cifar10": 1_005_578,
  "convmixer_256_16_ks8_p1_cifar10": 1_339_402,
}
SMALL = "convmixer_128_4_ks8_p1_cifar10"


def test_all_models_have_the_parameters_of_their_sources():
  counts = {}
  for name in list_models():
    model = ConvMixer(**settings_of(name))
    image = jax.ShapeDtypeStruct((1, model.patch_size, model.patch_size, 3), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    counts[name] = sum(x.size for x in jax.tree.leaves(params))
  assert counts == COUNTS


def test_only_768_32_has_relu():
  activations = {name: settings_of(name)["activation"] for name in list_models()}
  assert activations.pop("convmixer_768_32") == "relu"
  assert set(activations.values()) == {"gelu"}
  assert list_released() == list_models()[:3]


@pytest.mark.slow
def test_a_fresh_model_is_that_of_the_name_and_the_overrides():
  model, variables = create_model(SMALL, num_classes=5, in_chans=1, depth=1, dtype=jnp.bfloat16)
  assert model == ConvMixer(128, 1, 8, 1, 5, dtype=jnp.bfloat16)
  assert model.apply(variables, np.ones((2, 4, 4, 1))).shape == (2, 5)
  again = create_model(SMALL, num_classes=5, in_chans=1, depth=1)[1]
  other = create_model(SMALL, num_classes=5, in_chans=1, depth=1, seed=1)[1]
  for a, b, c in zip(*map(jax.tree.leaves, (variables, again, other)), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.ndim == 1 or np.any(a != c)
  assert "head" not in create_model(SMALL, num_classes=0, depth=1)[1]["params"]


def test_wrong_names_and_overrides_are_refused():
  with pytest.raises(UserError, match="'convmixer_1536-20' is not a model; did you mean conv"):
    create_model("convmixer_1536-20")
  with pytest.raises(UserError, match="'resnet50' is not a model; there are convmixer_1536_20, "):
    create_model("resnet50")
  with pytest.raises(ValueError, match="activation is 'swish'; allowed: "):
    create_model(SMALL, activation="swish")
  with pytest.raises(TypeError, match="kernel"):
    create_model(SMALL, kernel=3)


# Dependencies of the project that neither JAX nor Flax needs. Only files need safetensors.
NOT_NEEDED = """
  PIL array_record grain huggingface_hub ml_collections simplejpeg sklearn
  tensorboardX tensorflow tensorflow_datasets torch tqdm
"""


def test_jax_and_flax_are_enough(tmp_path):
  code = f"""
import sys
for name in {NOT_NEEDED.split()}:
  sys.modules[name] = None
import jax.numpy as jnp
import convmixer_jax
model, variables = convmixer_jax.create_model("{SMALL}", num_classes=3, depth=1)
assert model.apply(variables, jnp.zeros((2, 4, 4, 3))).shape == (2, 3)
assert "safetensors" not in sys.modules
from convmixer_jax import pretrained
for ending in ("pth", "safetensors"):
  model, variables = pretrained.load(f"tests/golden/pretrained_gelu_odd.{{ending}}")
pretrained.save_torch({str(tmp_path / "a.safetensors")!r}, model, variables)
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
  assert (tmp_path / "a.safetensors").exists()
