"""What a compiled program runs, parsed from its optimized HLO text."""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

# They name, reorder or wrap arrays, and move nothing. A while or a conditional costs what its
# bodies cost, which are walked.
_FREE = {
  "after-all", "bitcast", "call", "conditional", "constant", "get-tuple-element", "iota",
  "opt-barrier", "parameter", "partition-id", "replica-id", "tuple", "while",
}  # fmt: skip
_SLICES = {"dynamic-slice", "gather", "slice"}  # read as much of their operand as they return

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # other names end in their bits
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\dm\d\w*)?\[([\d,]*)\](?:\{([^}]*)\})?")
_BODY = re.compile(r"^(ENTRY )?(%\S+) .*\{\n((?:.*\n)*?)\}", re.MULTILINE)
_INSTRUCTION = re.compile(r"\s+(ROOT )?(%\S+) = ")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|(?:true|false)_computation)=(%[^\s,}]+)"
  r"|\bbranch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
  """A result on one device: HLO's name of its dtype, its shape, and its memory.

  Attributes:
    space: number of the memory; 0 is the device's main memory, others are on the chip.
  """

  dtype: str
  shape: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """Size in memory."""
    digits = re.search(r"\d+", self.dtype)
    return self.size * (_BITS.get(self.dtype) or (int(digits[0]) if digits else 0)) // 8

  @property
  def main_bytes(self) -> int:
    """Size in main memory."""
    return 0 if self.space else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name, opcode, operands, is_root: as in the text; names begin with %, see `arrays_of`.
    arrays: its results.
    line: the text.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  is_root: bool
  line: str

  @property
  def source(self) -> str:
    """JAX's name of the operation that it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.line)
    return found[1] if found else ""

  @functools.cached_property
  def called(self) -> list[str]:
    """The computations that it runs. Reductions of two scalars are none."""
    if "to_apply=" in self.line and self.opcode != "call":
      return []
    names: list[str] = []
    for one, several in _CALLED.findall(self.line):
      names += [one] if one else several.replace(" ", "").split(",")
    return names


@dataclasses.dataclass(frozen=True)
class Run:
  """An instruction as a step of the program runs it.

  Attributes:
    instruction: what is run.
    computation: the name of the computation that it is in.
    times: how often, from the trip counts of the enclosing loops.
    is_bounded: False in a loop whose trip count is not known at compile time; `times` then counts
      one iteration of it.
    share: of the runs, if each branch of a conditional is taken as often as its others.
    is_fused: whether it is a part of a fusion.
  """

  instruction: Instruction
  computation: str
  times: int
  is_bounded: bool
  share: float
  is_fused: bool


class Program:
  """A compiled program.

  Args:
    text: the result of `compiled.as_text()`.

  Attributes:
    partitions: number of devices.

  Raises:
    ValueError: if the text has no entry computation.
  """

  def __init__(self, text: str):
    text = re.sub(r"/\*.*?\*/", "", text)
    header = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    self.partitions = int(header[1]) if header else 1
    self._lines = {match[2]: match[3].splitlines() for match in _BODY.finditer(text)}
    self._computations: dict[str, dict[str, Instruction]] = {}
    entry = re.search(r"^ENTRY (%\S+) ", text, re.MULTILINE)
    if entry is None:
      raise ValueError("this is no HLO module: it has no entry")
    self._entry = entry[1]

  def computation(self, name: str) -> dict[str, Instruction]:
    """Its instructions by name, in their order."""
    if name not in self._computations:
      found = [_parse(line) for line in self._lines[name]]
      self._computations[name] = {one.name: one for one in found if one is not None}
    return self._computations[name]

  def runs(self, *, fused: bool = False) -> Iterator[Run]:
    """All that a step runs, in the order of the schedule, with the bodies of loops inside it.

    Args:
      fused: also yield the instructions inside fusions.
    """
    yield from self._runs(Run(_ENTRY, self._entry, 1, True, 1.0, False), fused)

  def _runs(self, at: Run, fused: bool) -> Iterator[Run]:
    for one in self.computation(at.computation).values():
      yield dataclasses.replace(at, instruction=one)
      is_fusion = one.opcode == "fusion"
      if one.opcode.endswith(("-done", "-update")) or (is_fusion and not fused):
        continue  # they repeat the start's computation
      trips = self._trips(one) if one.opcode == "while" else 1
      for name in one.called:
        inner = dataclasses.replace(
          at,
          computation=name,
          times=at.times * (trips or 1),
          is_bounded=at.is_bounded and trips is not None,
          share=at.share / (len(one.called) if one.opcode == "conditional" else 1),
          is_fused=at.is_fused or is_fusion,
        )
        yield from self._runs(inner, fused)

  def _trips(self, loop: Instruction) -> int | None:
    """How often a loop runs: as the compiler states it, or else as long as a counter is below n."""
    if known := _TRIPS.search(loop.line):
      return int(known[1])
    name = re.search(r"\bcondition=(%[^\s,}]+)", loop.line)
    condition = self.computation(name[1]) if name else {}
    for one in condition.values():
      if one.is_root and one.opcode == "compare" and "direction=LT" in one.line:
        bound = condition[one.operands[1]]
        number = re.search(r" constant\((\d+)\)", bound.line)
        return int(number[1]) if number else None
    return None

  def bytes_moved(self, run: Run) -> int:
    """What one execution reads from and writes to main memory, each array once.

    A fusion that slices an operand reads the slice, and one that updates a part of an array in
    place writes the part.
    """
    one, around = run.instruction, self.computation(run.computation)
    if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
      return 0
    if "ConcatBitcast" in one.line:  # its operands already lie side by side
      return 0
    if one.opcode.endswith("-start"):
      return self._bytes_of_start(one)
    operands = [arrays_of(around, operand) for operand in one.operands]
    if one.opcode in _SLICES:
      return sum(x.main_bytes for x in one.arrays) + sum(x.bytes for x in one.arrays)
    if one.opcode == "dynamic-update-slice":
      return 2 * sum(x.bytes for x in operands[1])
    if one.opcode != "fusion":
      return sum(x.main_bytes for arrays in [one.arrays, *operands] for x in arrays)
    body = self.computation(one.called[0])
    read = sum(
      _read(body, index, arrays[0].main_bytes)
      for index, arrays in enumerate(operands)
      if len(arrays) == 1
    )
    return read + _written(body, one.arrays)

  def _bytes_of_start(self, one: Instruction) -> int:
    if one.opcode == "copy-start":  # (destination, source, context), where one may be on the chip
      return sum(x.main_bytes for x in one.arrays[:2])
    if one.called:  # the instructions of its computation are walked
      return 0
    count = len(one.operands)  # (operands, destinations, context); the destinations are smaller
    return sum(x.bytes for x in one.arrays[count : 2 * count])


def arrays_of(around: dict[str, Instruction], operand: str) -> tuple[Array, ...]:
  """The results of an operand; "%name#1" is one of several, and may have several itself."""
  name, *path = operand.split("#")
  if not path:
    return around[name].arrays
  line = around[name].line
  start = line.index(" = ") + 3
  text = line[start : start + _end_of_type(line[start:])]
  for number in path:
    text = _elements(text)[int(number)]
  return _arrays(text)


def is_work(run: Run) -> bool:
  """Whether a device has to launch something for it."""
  one = run.instruction
  return not (
    run.is_fused
    or one.opcode in _FREE
    or one.opcode.endswith(("-done", "-update"))
    or "ConcatBitcast" in one.line
  )


_ENTRY = Instruction("", "call", (), (), False, "")


def _parse(line: str) -> Instruction | None:
  match = _INSTRUCTION.match(line)
  if match is None:
    return None
  text = line[match.end() :]
  end = _end_of_type(text)
  opcode, _, rest = text[end + 1 :].partition("(")
  depth, close = 1, 0
  while depth and close < len(rest):
    depth += (rest[close] == "(") - (rest[close] == ")")
    close += 1
  arrays = _arrays(text[:end])
  operands = tuple(re.findall(r"%[^\s,()]+", rest[:close]))
  return Instruction(match[2], opcode, arrays, operands, bool(match[1]), line)


def _arrays(text: str) -> tuple[Array, ...]:
  """The arrays of a type, those of nested tuples one after the other."""
  return tuple(
    Array(dtype, tuple(int(n) for n in dims.split(",") if n), _space(layout))
    for dtype, dims, layout in _ARRAY.findall(text)
  )


def _elements(text: str) -> list[str]:
  """The types in a tuple's type."""
  found, depth = [""], 0
  for letter in text[1:-1]:
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and depth == 0:
      found.append("")
    else:
      found[-1] += letter
  return [element.strip() for element in found]


def _end_of_type(text: str) -> int:
  depth = end = 0
  while end == 0 or depth:  # tuples may be nested
    depth += (text[end] == "(") - (text[end] == ")")
    end += 1
  return text.index(" ", end)


def _space(layout: str) -> int:
  found = re.search(r"S\((\d+)\)", layout)
  return int(found[1]) if found else 0


def _read(body: dict[str, Instruction], index: int, whole: int) -> int:
  """Bytes that a fusion reads of its operand with this index, whose size is `whole`."""
  names = [
    one.name
    for one in body.values()
    if one.opcode == "parameter" and f" parameter({index})" in one.line
  ]
  total = 0
  while names:
    name = names.pop()
    if body[name].is_root:
      return whole
    for user in (one for one in body.values() if name in one.operands):
      if user.opcode == "bitcast" and not user.is_root:
        names.append(user.name)
      elif user.opcode in _SLICES and user.operands[0] == name:
        total += sum(x.bytes for x in user.arrays)
      elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
        return whole
  return min(total, whole)


def _written(body: dict[str, Instruction], arrays: tuple[Array, ...]) -> int:
  """Bytes that a fusion with these results writes."""
  root = next(one for one in body.values() if one.is_root)
  results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
  total = 0
  for array, result in zip(arrays, results, strict=False):
    while result.opcode == "bitcast":
      result = body[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
      total += sum(x.bytes for x in body[result.operands[1]].arrays)
    else:
      total += array.main_bytes
  return total
