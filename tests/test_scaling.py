import pytest

from benchmarks import scaling
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
  scaling.set_batch(config, devices=4, batch_per_device=4)
  row = scaling.measure(config, 4)
  found = {c["part"]: c for c in row["collectives"]}
  dim, norms = 32, 2 * 2 + 1
  parameters = 3 * norms * dim + dim + 2 * (25 * dim + dim * dim) + dim * 10 + 10
  assert found["gradients"]["bytes"] == 4 * parameters
  assert found["BatchNorm statistics"]["bytes"] == 4 * 2 * norms * dim
  assert set(found) == {"gradients", "BatchNorm statistics", "metrics and norms"}
  assert {c["kind"] for c in row["collectives"]} == {"all-reduce"}
  assert row["batch"] == 16
