"""The collectives of a compiled training step."""

from benchmarks import scaling
from convmixer_jax import config as config_lib


def test_groups_on_a_device_leave_gradients_statistics_and_metrics_alone(configs):
  """Each of these is all-reduced once, and there are no other collectives."""
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
