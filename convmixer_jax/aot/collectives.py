"""The collectives of a compiled program, and the work that hides them."""

from collections.abc import Sequence
import dataclasses
import math
import re

from convmixer_jax.aot.hlo import Array, Instruction, Program, Run, arrays_of

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

GRADIENTS, PARAMETERS, STATISTICS = "gradients", "parameters", "BatchNorm statistics"
METRICS, OTHER = "metrics and norms", "other"


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation between devices. A start and its done count as one.

  Attributes:
    kind: one of `KINDS`.
    arrays: on one device, the operands or the results, whichever are larger; several where the
      compiler has combined collectives.
    sources: for each array, JAX's name of the operation that caused the collective.
    devices: size of each of its groups; 2 for a "collective-permute".
    times, is_bounded: how often a step runs it, see `hlo.Run`.
    is_async: whether the program goes on while it is under way.
    covered: bytes that other instructions move during one execution of it.
  """

  kind: str
  arrays: tuple[Array, ...]
  sources: tuple[str, ...]
  devices: int
  times: int
  is_bounded: bool
  is_async: bool = False
  covered: int = 0

  @property
  def bytes(self) -> int:
    """Payload of one device for one execution."""
    return sum(array.bytes for array in self.arrays)

  @property
  def traffic(self) -> float:
    """Bytes that one device sends for one execution, in a ring."""
    rounds = {"all-reduce": 2, "collective-permute": self.devices / (self.devices - 1)}
    return rounds.get(self.kind, 1) * self.bytes * (self.devices - 1) / self.devices


def collectives(program: Program) -> list[Collective]:
  """The collectives that a step runs, in the order of the schedule, including loops and calls.

  Groups of one device, which need no communication, are left out. All branches are counted.

  Raises:
    ValueError: if a collective cannot be parsed.
  """
  runs = list(program.runs(fused=True))
  steps: dict[str, list[int]] = {}
  for place, run in enumerate(runs):
    if _is_step(run):
      steps.setdefault(_channel(run), []).append(place)
  found = []
  for place, run in enumerate(runs):
    kind = run.instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
      continue
    places = steps[_channel(run)] if _is_step(run) else [place]
    if place != places[0]:
      continue
    collective = _read(run, kind, program.partitions)
    if collective.devices == 1:
      continue
    start = _start(runs, place)
    end = places[-1] if _is_step(run) else _end(runs, start)
    collective = _unjoined(program, runs[start], collective)
    between = runs[place + 1 : end]
    covered = sum(
      other.times / run.times * other.share * program.bytes_moved(other)
      for other in between
      if not other.is_fused
    )
    is_async = run.is_fused or end > start
    found.append(dataclasses.replace(collective, is_async=is_async, covered=int(covered)))
  return found


def part(kind: str, array: Array, source: str, parameter_sizes: set[int]) -> str:
  """The part of the step that an array of a collective belongs to.

  Args:
    kind: one of `KINDS`.
    array: one of the collective's arrays.
    source: JAX's name of the operation.
    parameter_sizes: numbers of elements of the model's parameters. An array of any other size is a
      feature map or an image, thus "other", unless it is a scalar.
  """
  if array.size == 1 and array.dtype != "pred":
    return METRICS
  if array.size not in parameter_sizes:
    return OTHER
  if kind == "all-gather":
    return PARAMETERS
  if "transpose(" in source:
    return GRADIENTS
  return STATISTICS if "_norm" in source else OTHER


def _is_step(run: Run) -> bool:
  """Whether it is one of the steps in which a TPU runs a collective, each fused with other work."""
  return run.is_fused and run.instruction.opcode in KINDS


def _channel(run: Run) -> str:
  found = re.search(r"channel_id=\d+", run.instruction.line)
  return found[0] if found else run.instruction.name


def _start(runs: Sequence[Run], place: int) -> int:
  """The place of the instruction that starts a collective, which may have its own computation."""
  before = place
  while before and runs[before].computation == runs[place].computation:
    before -= 1
  return before if runs[before].instruction.opcode == "async-start" else place


def _end(runs: Sequence[Run], start: int) -> int:
  """The place of the instruction that waits for it; that of the start if it waits itself."""
  computation, name = runs[start].computation, runs[start].instruction.name
  if not runs[start].instruction.opcode.endswith("-start"):
    return start
  for later, run in enumerate(runs[start + 1 :], start + 1):
    one = run.instruction
    if run.computation == computation and name in one.operands:
      if one.opcode.endswith("-done"):
        return later
      name = one.name  # of an update
  return start


def _unjoined(program: Program, start: Run, collective: Collective) -> Collective:
  """With the arrays that the compiler has joined into a single one, as it does for GPUs."""
  around = program.computation(start.computation)
  joined = around[start.instruction.operands[0].partition("#")[0]]
  if len(collective.arrays) > 1:
    return collective
  whole, parts = collective.arrays[0], joined.operands
  arrays = [array for operand in parts for array in arrays_of(around, operand)]
  if len(parts) < 2 or sum(array.size for array in arrays) != whole.size:
    return collective
  return dataclasses.replace(
    collective,
    arrays=tuple(Array(whole.dtype, array.shape) for array in arrays),
    sources=tuple(_source(part, around) for part in parts),
  )


def _source(operand: str, around: dict[str, Instruction]) -> str:
  """JAX's name of the operation that makes an operand."""
  one = around[operand.partition("#")[0]]
  return one.source or (_source(one.operands[0], around) if one.operands else "")


def _read(run: Run, kind: str, partitions: int) -> Collective:
  one = run.instruction
  devices = 2 if kind == "collective-permute" else _group_size(one.line, partitions)
  arrays = list(one.arrays)
  if one.opcode.endswith("-start") and " = ((" in one.line:  # ((operands), results)
    arrays = arrays[len(one.operands) :]
  elif one.opcode.endswith("-start") and kind == "collective-permute":
    arrays = arrays[1:2]  # operand, result, and the runtime's context
  elif one.opcode.endswith("-start") and kind == "all-gather":
    arrays = arrays[len(arrays) // 2 :]  # the operands, then the results
  if not arrays:
    raise ValueError(f"no array in {one.line}")
  if kind == "reduce-scatter":
    axis = int(_search(r"dimensions=\{(\d+)", one.line)[1])
    arrays = [
      dataclasses.replace(x, shape=(*x.shape[:axis], x.shape[axis] * devices, *x.shape[axis + 1 :]))
      for x in arrays
    ]
  sources = _sources(one, len(arrays))
  return Collective(kind, tuple(arrays), sources, devices, run.times, run.is_bounded)


def _group_size(line: str, partitions: int) -> int:
  """Devices per group, from {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=2] {'b'}."""
  groups = _search(
    r"replica_groups=(mesh\[[^]]*\][^{]*\{[^}]*\}|\[\d+,\d+\]|\{\}|\{\{[^}]*\})", line
  )[1]
  if groups.startswith("mesh"):
    sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", groups)}
    axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", groups.rpartition("{")[2])
    return math.prod(int(part) if part else sizes[name] for name, part in axes)
  if groups.startswith("["):
    return int(_search(r"\[\d+,(\d+)\]", groups)[1])
  return partitions if groups == "{}" else groups.count(",") + 1


def _sources(one: Instruction, count: int) -> tuple[str, ...]:
  """One name for each array; the compiler joins the names of the collectives that it combines."""
  prefix, _, joined = one.source.partition("/(")
  names = tuple(f"{prefix}/{part}" for part in joined.removesuffix(")").split(":"))
  return names if len(names) == count > 1 else (one.source,) * count


def _search(pattern: str, text: str) -> re.Match[str]:
  match = re.search(pattern, text)
  if match is None:
    raise ValueError(f"{pattern} is not in {text}")
  return match
