import pytest

from benchmarks import scaling, scaling_model
from benchmarks.collectives import Array
from convmixer_jax import config as config_lib


@pytest.mark.parametrize(
  ("kind", "array", "part"),
  [
    ("all-reduce", Array("f32", (4, 4), "jit(s)/transpose(jvp(M))/blocks_0/dot"), "gradients"),
    ("all-reduce", Array("f32", (4,), "jit(s)/jvp(M)/blocks_0/depthwise_norm/reduce_sum"),
     "BatchNorm statistics"),
    ("all-gather", Array("bf16", (4, 4), "jit(s)/transpose(jvp(M))/blocks_0/dot"), "parameters"),
    ("all-reduce", Array("f32", (), "jit(s)/jvp()/reduce_sum"), "metrics and norms"),
    ("all-reduce", Array("pred", (), "jit(s)/while"), "other"),
    ("all-gather", Array("f32", (4, 8, 8, 8), "jit(s)/transpose(jvp(M))/blocks_0/conv"), "other"),
  ],
)  # fmt: skip
def test_parts_of_the_step(kind, array, part):
  assert scaling.part(kind, array, {4, 16}) == part


def test_groups_on_a_device_leave_gradients_statistics_and_metrics_alone(configs):
  """Each is summed once over the devices, and nothing else goes between them."""
  config = config_lib.read(configs / "digits.py")
  config.model.update(depth=2, dim=32)
  row = scaling.measure(scaling.at_size(config, devices=4, batch_per_device=4), 4)
  found = {c["part"]: c for c in row["collectives"]}
  dim, norms = 32, 2 * 2 + 1
  parameters = 3 * norms * dim + dim + 2 * (25 * dim + dim * dim) + dim * 10 + 10
  assert found["gradients"]["bytes"] == 4 * parameters
  assert found["BatchNorm statistics"]["bytes"] == 4 * 2 * norms * dim
  assert set(found) == {"gradients", "BatchNorm statistics", "metrics and norms"}
  assert {c["kind"] for c in row["collectives"]} == {"all-reduce"}
  assert row["batch"] == 16


def test_model_of_an_all_reduce_in_a_node_and_between_nodes():
  chip = scaling_model.H200
  node = scaling_model.System(chip, 4, 4, 4, link=100e9, network=0, hop=(0, 0))
  assert node.all_reduce(80e9) == pytest.approx(2 * 3 / 4 * 80 / 80)
  both = scaling_model.System(chip, 8, 4, 4, link=100e9, network=10e9, hop=(0, 0))
  # Each device sends its quarter of the sums, half of it twice, to the other node.
  assert both.all_reduce(80e9) - node.all_reduce(80e9) == pytest.approx(2 * 1 / 2 * 20 / 8)


def test_model_of_a_step():
  system = scaling_model.SYSTEMS["64 H200, 400 Gb/s a node"]
  small, large = (scaling_model.predict(system, batch, 0.5) for batch in (640, 10_240))
  assert large["compute"] == pytest.approx(16 * small["compute"])
  assert small["reduce"] == large["reduce"]  # the gradients' size is the model's
  assert small["alone"] < small["overlapped"] < 1 and small["alone"] < large["alone"]
  assert small["rate"] == pytest.approx(640e3 / small["step"])
  eight = scaling_model.predict(scaling_model.SYSTEMS["8 H200"], 10_240, 0.5)
  assert eight["parts"] == 8
  assert eight["compute"] == pytest.approx(1280 * 2e3 * scaling_model.H200.seconds())
