import jax
import jax.numpy as jnp
import optax

from convmixer_jax import ConvMixer, pretrained
from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint.manager import Checkpoints
from convmixer_jax.checkpoint.state import create_state
from convmixer_jax.parallel import sharding
from convmixer_jax.pretrained.trained import Preprocessing
from tests.pretrained.goldens import assert_same_bits


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
