"""Cycles by part, from schedules like libtpu's."""

import pytest

from convmixer_jax.aot import bundles, cycles
from convmixer_jax.aot.hlo import Program
from convmixer_jax.aot.targets import CHIPS

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%one (p.1: f32[8]) -> f32[8] {
  ROOT %p.1 = f32[8]{0} parameter(0)
}

%two (p.2: f32[8]) -> f32[8] {
  ROOT %p.2 = f32[8]{0} parameter(0), metadata={op_name="another name"}
}

ENTRY %main (p: f32[1000000]) -> f32[8] {
  %p = f32[1000000]{0} parameter(0)
  %small = f32[8]{0} fusion(%p), kind=kLoop, calls=%one, \
metadata={op_name="jit(step)/jvp(ConvMixer)/ConvMixer._feature_map/blocks_0/depthwise/conv"}
  %other = f32[8]{0} fusion(%small), kind=kLoop, calls=%one, \
metadata={op_name="jit(step)/update/add"}
  %equal = f32[8]{0} fusion(%other), kind=kLoop, calls=%two, \
metadata={op_name="jit(step)/augment/add"}
  ROOT %untold = f32[8]{0} copy(%other)
}
"""

# Two bundles, of which the second waits three cycles longer; with a product.
SCHEDULE = """\
= control target key end
     0   :  { %s1 = inlined_call_operand.vmem [shape: f32[8], index: 0, kind: input, index: 0]   }
   0x1   :  { %v2 = vmatmul.f32.gmra.mxu0 %v1 ;;  %s3 = vdelay 3 }
"""


@pytest.fixture
def dump(tmp_path):
  (tmp_path / "17-small-01-final_bundles.txt").write_text(SCHEDULE)
  (tmp_path / "18-other-02-final_bundles.txt").write_text(SCHEDULE)
  (tmp_path / "18-other-00-schedule-analysis_final_bundles.txt").write_text(SCHEDULE)
  (tmp_path / "19-elsewhere-01-final_bundles.txt").write_text(SCHEDULE)
  return tmp_path


def test_schedules_are_matched_with_instructions_and_their_floors(dump):
  chip = CHIPS["v5e"]
  found = cycles.by_part(Program(PROGRAM), dump, chip)
  told = [name for name, part in found.items() if part.bundles]
  assert told == ["depthwise", "augmentation", "update"]
  assert found["update"] == cycles.Cycles(5, 5)
  assert found["augmentation"] == found["update"]  # computes the same, by the same schedule
  memory = (4_000_000 + 32) / chip.bandwidth * chip.clock
  assert found["depthwise"] == cycles.Cycles(5, pytest.approx(memory))


def test_rows_of_products():
  kinds = ("bf16.gmra.mxu0", "f32.vlgmr.msra.gmra.mxu1", "lmr.bf16.gmra.16.mxu2")
  code = " ;;  ".join(f"%{i} = vmatmul.{kind} %v1" for i, kind in enumerate(kinds))
  assert bundles.product_rows(f"= control target key end\n   0x1   :  {{ {code} }}\n") == 32


@pytest.mark.parametrize(
  ("source", "part"),
  [
    ("jit(train_step)/augment/vmap()/gather", "augmentation"),
    ("jit(train_step)/update/add", "update"),
    ("jvp(ConvMixer)/ConvMixer._feature_map/blocks_3/depthwise/shard_map/conv", "depthwise"),
    (
      "jvp(ConvMixer)/ConvMixer._feature_map/blocks_3/depthwise_norm/reduce_sum",
      "activation and norm",
    ),
    (
      "jvp(ConvMixer)/ConvMixer._feature_map/while/body/eval_jaxpr/Block/add",
      "activation and norm",
    ),
    ("transpose(jvp(ConvMixer))/ConvMixer._feature_map/blocks_3/pointwise/dot", "pointwise"),
    ("transpose(jvp(ConvMixer))/ConvMixer._feature_map/stem/dot_general", "pointwise"),
    ("jvp(ConvMixer)/ConvMixer.classify/head", "pointwise"),
    ("jit(train_step)/jvp()/reduce", "other"),
  ],
)
def test_parts(source, part):
  assert cycles.part_of(source) == part
