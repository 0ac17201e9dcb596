"""The account of small programs, as the compilers write them and as this machine compiles them."""

import textwrap

import jax
import jax.numpy as jnp
import pytest

from convmixer_jax.aot import account, hlo

# A TPU's program: a loop whose trip count only its condition tells, a fusion that reads a slice of
# what it gets and updates a row in place, a prefetch to the chip's memory (S(1)), a conditional.
TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=1

%body (s: (s32[], f32[20,1000], f32[20,1000])) -> (s32[], f32[20,1000], f32[20,1000]) {
  %s = (s32[]{:T(128)}, f32[20,1000]{1,0:T(8,128)}, f32[20,1000]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %stack = f32[20,1000]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %out = f32[20,1000]{1,0} get-tuple-element(%s), index=2
  %row = f32[20,1000]{1,0} fusion(%stack, %out, /*index=2*/%i), kind=kLoop, calls=%sliced
  ROOT %next = (s32[], f32[20,1000], f32[20,1000]) tuple(%i, %stack, %row)
}

%condition (s.1: (s32[], f32[20,1000], f32[20,1000])) -> pred[] {
  %s.1 = (s32[], f32[20,1000], f32[20,1000]) parameter(0)
  %n = s32[]{:T(128)} constant(20)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

%sliced (a: f32[20,1000], b: f32[20,1000], i.2: s32[]) -> f32[20,1000] {
  %a = f32[20,1000]{1,0} parameter(0)
  %b = f32[20,1000]{1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %flat = f32[20,1000]{1,0} bitcast(%a)
  %slice = f32[1,1000]{1,0} dynamic-slice(%flat, %i.2, %zero), dynamic_slice_sizes={1,1000}
  ROOT %update = f32[20,1000]{1,0} dynamic-update-slice(%b, %slice, %i.2, %zero)
}

%left (l: bf16[64]) -> bf16[64] {
  %l = bf16[64]{0} parameter(0)
  ROOT %copy.1 = bf16[64]{0} copy(%l)
}

%right (r: bf16[64]) -> bf16[64] {
  ROOT %r = bf16[64]{0} parameter(0)
}

ENTRY %main (p: f32[20,1000], x: bf16[64], k: s32[]) -> bf16[64] {
  %p = f32[20,1000]{1,0:T(8,128)} parameter(0)
  %x = bf16[64]{0} parameter(1)
  %k = s32[] parameter(2)
  %t = (s32[], f32[20,1000], f32[20,1000]) tuple(%k, %p, %p)
  %while = (s32[], f32[20,1000], f32[20,1000]) while(%t), condition=%condition, body=%body
  %copy-start = (bf16[64]{0:S(1)}, bf16[64]{0}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[64]{0:S(1)} copy-done(%copy-start)
  %chip = bf16[64]{0:S(1)} negate(%copy-done)
  ROOT %either = bf16[64]{0} conditional(%k, %x, %x), branch_computations={%left, %right}
}
"""


@pytest.fixture
def program():
  return hlo.Program(textwrap.dedent(TPU))


def runs(program):
  return {run.instruction.name: run for run in program.runs()}


def test_loops_multiply_and_branches_share(program):
  found = runs(program)
  assert (found["%row"].times, found["%row"].is_bounded) == (20, True)
  assert (found["%copy.1"].times, found["%copy.1"].share) == (1, 0.5)
  assert "%slice" not in found
  inside = [run for run in program.runs(fused=True) if run.is_fused]
  assert {"%slice", "%update"} <= {run.instruction.name for run in inside}


def test_a_loop_of_unknown_length_counts_once(program):
  text = textwrap.dedent(TPU).replace("constant(20)", "parameter(1)")
  row = runs(hlo.Program(text))["%row"]
  assert (row.times, row.is_bounded) == (1, False)


def test_bytes_are_those_of_slices_and_of_main_memory(program):
  found = runs(program)
  moved = {name: program.bytes_moved(run) for name, run in found.items()}
  assert moved["%row"] == 2 * 4000 + 4  # a row read and a row written, and the number
  assert moved["%copy-start"] == 128  # read; written to the chip
  assert moved["%chip"] == moved["%copy-done"] == moved["%while"] == moved["%p"] == 0
  assert moved["%copy.1"] == 2 * 128
  launched = [name for name, run in found.items() if hlo.is_work(run)]
  assert launched == ["%row", "%copy-start", "%chip", "%copy.1"]


def test_operands_may_be_parts_of_results():
  text = "  %x = (f32[2]{0}, (s32[], bf16[3,4]{1,0:T(8,128)S(1)})) custom-call(%y#1, %z#0#1)"
  around = {"%x": hlo._parse(text)}
  assert around["%x"].operands == ("%y#1", "%z#0#1")
  assert hlo.arrays_of(around, "%x#0") == (hlo.Array("f32", (2,)),)
  assert hlo.arrays_of(around, "%x#1#1") == (hlo.Array("bf16", (3, 4), 1),)
  assert len(hlo.arrays_of(around, "%x")) == 3


def test_the_account_of_a_scan_counts_each_iteration():
  def step(x, ys):
    return jax.lax.scan(lambda x, y: (jnp.tanh(x @ y), x.sum()), x, ys)

  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 64), (7, 64, 64))]
  found = account.read(jax.jit(step).lower(*shapes).compile(), 1.5)
  assert found.seconds == 1.5
  assert found.arguments == 4 * 8 * 64 * 64
  assert found.is_bounded
  assert 7 * 3 * 4 * 64 * 64 <= found.moved < 7 * 20 * 4 * 64 * 64
  assert 7 * 2 <= found.launches < 7 * 30
  assert found.total >= found.arguments + found.temporaries
  assert found.collectives == []


def test_texts_that_are_no_programs_are_refused():
  with pytest.raises(ValueError, match="no entry"):
    hlo.Program("HloModule empty")
