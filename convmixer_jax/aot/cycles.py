"""Cycles of a TPU program by the part of the step, from the schedules that libtpu dumps."""

from collections.abc import Iterator
import dataclasses
import pathlib
import re

from convmixer_jax.aot import bundles
from convmixer_jax.aot.hlo import Instruction, Program, Run
from convmixer_jax.aot.targets import Chip

BLIND_SPOTS = (
  "Cycles are bundles of the final schedule times the trip counts of their loops, on one core. "
  "Not in them: stalls of memory and DMA, how long a product occupies the matrix units, time "
  "between programs, collectives. A loop whose trips depend on data counts once, and each branch "
  "of a conditional as often as the others. A fusion counts for the part of its main operation. "
  '"with floors" takes for each program the largest of its cycles, its bytes over the memory\'s '
  "bandwidth, and its products' rows over the matrix units' rate."
)

PARTS = ("depthwise", "pointwise", "activation and norm", "augmentation", "update", "other")
# What the names of operations contain, in the order in which they are tried.
_NAMES = {
  "/augment/": "augmentation",
  "/update/": "update",
  "/depthwise/": "depthwise",
  "/pointwise/": "pointwise",
  "/stem/": "pointwise",
  "/head/": "pointwise",
  "_norm/": "activation and norm",
  "_feature_map/": "activation and norm",  # the residual sums
}
# What differs between the texts of equal fusions.
_NAMED = re.compile(r"%[\w.-]+|, (metadata|backend_config)=.*")


@dataclasses.dataclass(frozen=True)
class Cycles:
  """Cycles of a step.

  Attributes:
    bundles: of the schedule.
    with_floors: see `BLIND_SPOTS`.
  """

  bundles: float = 0.0
  with_floors: float = 0.0

  def __add__(self, other: "Cycles") -> "Cycles":
    return Cycles(self.bundles + other.bundles, self.with_floors + other.with_floors)


def by_part(program: Program, dump: pathlib.Path, chip: Chip) -> dict[str, Cycles]:
  """The cycles of each of `PARTS`.

  Args:
    program: the compiled step.
    dump: directory to which libtpu has written its schedules, and no other program's.
    chip: peaks of the TPU.
  """
  schedules = dict(_schedules(dump))
  runs = [(run, _computed(program, run)) for run in program.runs()]
  counted = {}  # libtpu writes one schedule for all instructions that compute the same
  for run, computed in runs:
    text = schedules.get(run.instruction.name.removeprefix("%"))
    if text is not None:
      counted[computed] = bundles.cycles(text), bundles.product_rows(text)
  found = dict.fromkeys(PARTS, Cycles())
  for run, computed in runs:
    if computed not in counted:
      continue
    cycles, rows = counted[computed]
    count, busy = cycles / chip.cores, rows / 4 / chip.cores  # four matrix units
    floor = program.bytes_moved(run) / chip.bandwidth * chip.clock
    weight = run.times * run.share
    part = part_of(run.instruction.source)
    found[part] += Cycles(weight * count, weight * max(count, floor, busy))
  return found


def part_of(source: str) -> str:
  """The part of the step that an operation belongs to, by JAX's name of it."""
  return next((part for name, part in _NAMES.items() if name in f"{source}/"), "other")


def _schedules(dump: pathlib.Path) -> Iterator[tuple[str, str]]:
  """The name of each program and its final schedule."""
  for path in sorted(dump.glob("*-final_bundles.txt")):
    name = re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name)
    if name is not None:
      yield name[1], path.read_text()


def _computed(program: Program, run: Run) -> tuple[str, ...]:
  """What an instruction computes, as text without the names that differ between equal ones."""
  one, around = run.instruction, program.computation(run.computation)
  operands = [_type(around[operand.partition("#")[0]]) for operand in one.operands]
  inner = program.computation(one.called[0]).values() if one.opcode == "fusion" else ()
  return one.opcode, _type(one), *operands, *(_NAMED.sub("", part.line) for part in inner)


def _type(one: Instruction) -> str:
  return one.line.partition(" = ")[2].partition(f" {one.opcode}(")[0]
