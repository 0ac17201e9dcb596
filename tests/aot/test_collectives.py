"""The collectives of compiled training steps, and of texts as GPU compilers write them."""

import textwrap

import jax
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.aot import account, lowered, report, targets
from convmixer_jax.aot.collectives import collectives, part
from convmixer_jax.aot.hlo import Array, Program
from convmixer_jax.parallel import sharding


def rows(config, devices):
  """Those of the report."""
  mesh = sharding.make_mesh(jax.devices()[:devices], config.parallel.fsdp)
  step, state = lowered.lower_train_step(config, mesh)
  found = account.read(step.compile(), 0.0)
  sizes = {leaf.size for leaf in jax.tree.leaves(state.params)}
  target = targets.parse(f"cpux{devices}")
  return {row["part"]: row for row in report.of_program(found, target, None, sizes)["collectives"]}


@pytest.fixture
def config(configs):
  config = config_lib.read(configs / "digits.py")
  config.model.update(depth=2, dim=32, depthwise="taps")
  config.data.update(batch_size=16, group_size=4)
  return config


def test_groups_on_a_device_leave_gradients_statistics_and_metrics_alone(config):
  """Each of these is all-reduced once, and there are no other collectives."""
  found = rows(config, 4)
  dim, norms = 32, 2 * 2 + 1
  parameters = 3 * norms * dim + dim + 2 * (25 * dim + dim * dim) + dim * 10 + 10
  assert found["gradients"]["bytes"] == 4 * parameters
  assert found["gradients"]["sent"] == 2 * 3 / 4 * 4 * parameters
  assert found["BatchNorm statistics"]["bytes"] == 4 * 2 * norms * dim
  assert set(found) == {"gradients", "BatchNorm statistics", "metrics and norms"}
  assert {row["kind"] for row in found.values()} == {"all-reduce"}
  assert not any(row["is_async"] for row in found.values())


@pytest.mark.slow
def test_fsdp_gathers_parameters(config):
  config.parallel.fsdp = 4
  config.model.dim = 64  # smaller arrays are not cut
  assert rows(config, 4)["parameters"]["kind"] == "all-gather"


SUM = """\
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}
"""

OVERLAPPED = (
  f"HloModule jit_step, is_scheduled=true, num_partitions=8\n\n{SUM}"
  + """
%scattered (x.1: f32[1024]) -> f32[128] {
  %x.1 = f32[1024]{0} parameter(0)
  ROOT %reduce-scatter = f32[128]{0} reduce-scatter(%x.1), replica_groups=[1,8]<=[8], \
dimensions={0}, to_apply=%sum
}

ENTRY %main (p: f32[1024], q: f32[256,256]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  %q = f32[256,256]{1,0} parameter(1)
  %kernel = f32[4,4]{1,0} slice(%q), metadata={op_name="jit(step)/transpose(jvp(m))/dot"}
  %flat = f32[16]{0} bitcast(%kernel)
  %count = f32[1]{0} slice(%q)
  %joined = f32[17]{0} concatenate(%flat, %count), dimensions={0}
  %two = f32[17]{0} all-reduce(%joined), replica_groups={}, to_apply=%sum
  %all-reduce-start = f32[1024]{0} all-reduce-start(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, \
to_apply=%sum, metadata={op_name="jit(step)/transpose(jvp(m))/dot"}
  %dot = f32[256,256]{1,0} dot(%q, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-reduce-done = f32[1024]{0} all-reduce-done(%all-reduce-start)
  %async-start = ((f32[1024]{0}), f32[128]{0}) async-start(%p), calls=%scattered
  %async-done = f32[128]{0} async-done(%async-start)
  %alone = f32[1024]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, \
to_apply=%sum
  %start = ((f32[1024]{0}), f32[1024]{0}) all-reduce-start(%p), replica_groups={}, to_apply=%sum
  %done = f32[1024]{0} all-reduce-done(%start)
  ROOT %late = f32[1024]{0} all-reduce(%all-reduce-done), replica_groups={}, to_apply=%sum
}
"""
)


def test_what_runs_during_a_collective_covers_it():
  _, overlapped, scattered, paired, late = collectives(Program(textwrap.dedent(OVERLAPPED)))
  assert (overlapped.kind, overlapped.devices, overlapped.bytes) == ("all-reduce", 4, 4096)
  assert (overlapped.is_async, overlapped.covered) == (True, 3 * 4 * 256**2)
  assert (scattered.kind, scattered.bytes, scattered.traffic) == ("reduce-scatter", 4096, 7 * 512)
  assert (scattered.is_async, scattered.covered) == (True, 0)
  assert (paired.bytes, paired.is_async) == (4096, True)
  assert (late.devices, late.is_async, late.covered) == (8, False, 0)


IN_STEPS = (
  f"HloModule jit_step, is_scheduled=true, num_partitions=4\n\n{SUM}"
  + """
%first (x.1: f32[64]) -> f32[64] {
  %x.1 = f32[64]{0} parameter(0)
  ROOT %step.1 = f32[64]{0} all-reduce(%x.1), channel_id=3, replica_groups={}, to_apply=%sum
}

%second (x.2: f32[64], q.2: f32[32,32]) -> (f32[64], f32[32,32]) {
  %x.2 = f32[64]{0} parameter(0)
  %q.2 = f32[32,32]{1,0} parameter(1)
  %dot = f32[32,32]{1,0} dot(%q.2, %q.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %step.2 = f32[64]{0} all-reduce(%x.2), channel_id=3, replica_groups={}, to_apply=%sum
  ROOT %both = (f32[64]{0}, f32[32,32]{1,0}) tuple(%step.2, %dot)
}

%third (x.3: f32[64]) -> f32[64] {
  %x.3 = f32[64]{0} parameter(0)
  ROOT %step.3 = f32[64]{0} all-reduce(%x.3), channel_id=3, replica_groups={}, to_apply=%sum
}

ENTRY %main (p: f32[64], q: f32[32,32]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  %q = f32[32,32]{1,0} parameter(1)
  %one = f32[64]{0} fusion(%p), kind=kCustom, calls=%first
  %two = (f32[64]{0}, f32[32,32]{1,0}) fusion(%one, %q), kind=kOutput, calls=%second
  %rest = f32[64]{0} get-tuple-element(%two), index=0
  ROOT %three = f32[64]{0} fusion(%rest), kind=kCustom, calls=%third
}
"""
)


def test_steps_of_a_collective_are_one_that_their_fusions_cover():
  (found,) = collectives(Program(textwrap.dedent(IN_STEPS)))
  assert (found.bytes, found.devices, found.is_async) == (4 * 64, 4, True)
  product, steps = 2 * 4 * 32**2, 2 * 4 * 64
  assert product <= found.covered <= product + 2 * steps


def test_arrays_that_the_compiler_joins_are_told_apart():
  two, *_ = collectives(Program(textwrap.dedent(OVERLAPPED)))
  assert [array.shape for array in two.arrays] == [(16,), (1,)]
  assert two.sources == ("jit(step)/transpose(jvp(m))/dot", "")
  parts = [part(two.kind, *pair, {16}) for pair in zip(two.arrays, two.sources, strict=True)]
  assert parts == ["gradients", "metrics and norms"]


@pytest.mark.parametrize(
  ("kind", "array", "source", "expected"),
  [
    ("all-reduce", Array("f32", ()), "anything", "metrics and norms"),
    ("all-reduce", Array("f32", (4, 2)), "transpose(jvp(m))/x", "gradients"),
    ("all-reduce", Array("f32", (8,)), "jvp(m)/stem_norm/reduce_sum", "BatchNorm statistics"),
    ("all-gather", Array("f32", (8,)), "", "parameters"),
    ("all-gather", Array("u8", (9,)), "transpose(jvp(m))/x", "other"),
  ],
)
def test_parts_of_the_step(kind, array, source, expected):
  assert part(kind, array, source, {8}) == expected
