import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from benchmarks.collectives import collectives


@pytest.fixture
def mesh():
  """Eight devices in two rows of four."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((2, 4), ("rows", "columns"), auto)


def found_in(function, *arguments, out=None):
  """The collectives of the compiled program."""
  settings = {} if out is None else {"out_shardings": out}
  return collectives(jax.jit(function, **settings).lower(*arguments).compile().as_text())


def test_nothing_between_devices_that_share_nothing(mesh):
  x = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=NamedSharding(mesh, P("rows")))
  assert found_in(lambda x: x * 2, x) == []


def test_a_sum_over_all_devices(mesh):
  sharding = NamedSharding(mesh, P(("rows", "columns")))
  x = jax.ShapeDtypeStruct((8, 5, 7), jnp.float32, sharding=sharding)
  (reduction,) = found_in(lambda x: x.sum(0), x, out=NamedSharding(mesh, P()))
  assert (reduction.kind, reduction.devices, reduction.times) == ("all-reduce", 8, 1)
  assert reduction.bytes == 5 * 7 * 4
  assert reduction.traffic == 2 * 7 / 8 * 5 * 7 * 4
  (array,) = reduction.arrays
  assert (array.dtype, array.size) == ("f32", 35) and array.source.endswith("/reduce_sum")
  assert reduction.is_bounded


@pytest.mark.parametrize(("axis", "devices"), [("rows", 2), ("columns", 4)])
def test_each_kind_over_one_axis_of_the_mesh(mesh, axis, devices):
  """Payload: the whole array, of 8 x 3 float32, that lies in parts on the devices of the axis."""
  whole, part = NamedSharding(mesh, P()), NamedSharding(mesh, P(axis))
  x = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=part)
  (gather,) = found_in(lambda x: x + 1, x, out=whole)
  shape = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)

  def scatter(x):
    return jax.lax.psum_scatter(x, axis, tiled=True)

  full = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=whole)
  (reduced,) = found_in(shape(scatter, in_specs=P(), out_specs=P(axis)), full)

  def turn(x):
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % devices) for i in range(devices)])

  (permuted,) = found_in(shape(turn, in_specs=P(axis), out_specs=P(axis)), x)
  kinds = {c.kind: c for c in (gather, reduced, permuted)}
  assert list(kinds) == ["all-gather", "reduce-scatter", "collective-permute"]
  assert gather.devices == reduced.devices == devices
  assert gather.bytes == reduced.bytes == 8 * 3 * 4
  assert gather.traffic == reduced.traffic == 8 * 3 * 4 * (devices - 1) / devices
  assert permuted.bytes == permuted.traffic == 8 * 3 * 4 / devices


def test_exchange_of_two_axes(mesh):
  x = jax.ShapeDtypeStruct((8, 12), jnp.bfloat16, sharding=NamedSharding(mesh, P("columns")))
  (exchange,) = found_in(
    jax.shard_map(
      lambda x: jax.lax.all_to_all(x, "columns", 1, 0, tiled=True),
      mesh=mesh,
      in_specs=P("columns"),
      out_specs=P(None, "columns"),
      check_vma=False,
    ),
    x,
  )
  assert (exchange.kind, exchange.devices) == ("all-to-all", 4)
  assert sum(array.size for array in exchange.arrays) == 8 * 12 / 4


def test_loops_count_each_turn(mesh):
  """Three turns with five in each; and a loop that ends nobody knows when."""

  def sums(x):
    def inner(x, _):
      return jax.lax.psum(x, "columns") / 4, None

    def outer(x, _):
      return jax.lax.scan(inner, jnp.sin(x), length=5)[0], None

    return jax.lax.scan(outer, x, length=3)[0]

  def until_large(x):
    return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: jax.lax.psum(x, "columns"), x)

  local = functools.partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
  x = jax.ShapeDtypeStruct((6,), jnp.float32, sharding=NamedSharding(mesh, P()))
  counted = found_in(local(sums), x)
  assert sum(c.times * c.bytes for c in counted) == 3 * 5 * 6 * 4
  assert all(c.is_bounded for c in counted)
  (unknown,) = found_in(local(until_large), x)
  assert (unknown.times, unknown.is_bounded, unknown.bytes) == (1, False, 24)


def test_asynchronous_forms_count_once():
  """As GPU and TPU backends write them, with the types of the start's tuple."""
  hlo = """HloModule step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[16]) -> f32[4] {
  %p = f32[16]{0} parameter(0)
  ROOT %rs = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[16], y: bf16[2,3]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %y = bf16[2,3]{1,0} parameter(1)
  %ar = f32[16]{0} all-reduce-start(%x), replica_groups={}, to_apply=%add
  %ar.done = f32[16]{0} all-reduce-done(%ar)
  %ag = (bf16[2,3]{1,0}, bf16[8,3]{1,0}) all-gather-start(%y), replica_groups=[2,4]<=[8], dimensions={0}
  %ag.done = bf16[8,3]{1,0} all-gather-done(%ag)
  %cp = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %cp.done = f32[16]{0} collective-permute-done(%cp)
  %rs = ((f32[16]{0}), f32[4]{0}) async-start(%x), calls=%wrapped
  %rs.done = f32[4]{0} async-done(%rs), calls=%wrapped
  %alone = f32[16]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %out = f32[16]{0} add(%ar.done, %cp.done)
}
"""  # noqa: E501
  found = {c.kind: (c.devices, c.bytes) for c in collectives(hlo)}
  assert len(collectives(hlo)) == 4
  assert found == {
    "all-reduce": (8, 64),
    "all-gather": (4, 8 * 3 * 2),
    "collective-permute": (2, 64),
    "reduce-scatter": (4, 64),
  }
  with pytest.raises(ValueError, match="no entry"):
    collectives("HloModule empty\n")
