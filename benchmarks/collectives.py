"""The collectives of a compiled program, parsed from its optimized HLO text."""

from collections.abc import Iterator
import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # other names end in their bits
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\dm\d\w*)?\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?(%\S+) = ")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation)=(%[^\s,}]+)"
  r"|\bbranch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
  """The operand or the result of a collective on one device, whichever is larger.

  Attributes:
    dtype: HLO's name of the type.
    shape: dimensions.
    source: JAX's name of the operation that caused the collective.
  """

  dtype: str
  shape: tuple[int, ...]
  source: str

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """Size in memory."""
    return self.size * _bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation between devices. A start and its done count as one.

  Attributes:
    kind: one of `KINDS`.
    arrays: its arrays; several where the compiler has combined collectives.
    devices: size of each of its groups; 2 for a "collective-permute".
    times: how often a step runs it, from the trip counts of the enclosing loops.
    is_bounded: False in a loop whose trip count is not known at compile time; `times` then counts
      one iteration of it.
  """

  kind: str
  arrays: tuple[Array, ...]
  devices: int
  times: int
  is_bounded: bool

  @property
  def bytes(self) -> int:
    """Payload of one device for one execution."""
    return sum(array.bytes for array in self.arrays)

  @property
  def traffic(self) -> float:
    """Bytes that one device sends for one execution, in a ring."""
    rounds = {"all-reduce": 2, "collective-permute": self.devices / (self.devices - 1)}
    return rounds.get(self.kind, 1) * self.bytes * (self.devices - 1) / self.devices


def collectives(hlo: str) -> list[Collective]:
  """The collectives that a step runs, in the order of the text, including loops and calls.

  Groups of one device, which need no communication, are left out. All branches are counted.

  Args:
    hlo: the result of `compiled.as_text()`.

  Raises:
    ValueError: if the text has no entry computation, or a collective cannot be parsed.
  """
  hlo = re.sub(r"/\*.*?\*/", "", hlo)
  header = re.search(r"num_partitions=(\d+)", hlo.partition("\n")[0])
  partitions = int(header[1]) if header else 1
  bodies = {
    match[2]: match[3].splitlines()
    for match in re.finditer(r"^(ENTRY )?(%\S+) .*\{\n((?:.*\n)*?)\}", hlo, re.MULTILINE)
  }
  entry = re.search(r"^ENTRY (%\S+) ", hlo, re.MULTILINE)
  if entry is None:
    raise ValueError("this is no HLO module: it has no entry")
  return list(_walk(bodies, entry[1], partitions, 1, True))


def _walk(
  bodies: dict[str, list[str]], name: str, partitions: int, times: int, is_bounded: bool
) -> Iterator[Collective]:
  for line in bodies[name]:
    match = _INSTRUCTION.match(line)
    if match is None:
      continue
    shape, opcode = _split(line[match.end() :])
    kind = opcode.removesuffix("-start")
    if kind in KINDS:
      collective = _read(line, kind, shape, opcode != kind, partitions)
      if collective.devices > 1:
        yield dataclasses.replace(collective, times=times, is_bounded=is_bounded)
    elif not opcode.endswith(("-done", "-update")):  # they repeat the start's computation
      trips = _TRIPS.search(line)
      count, is_known = int(trips[1]) if trips else 1, opcode != "while" or trips is not None
      for called in _called(line):
        yield from _walk(bodies, called, partitions, times * count, is_bounded and is_known)


def _split(text: str) -> tuple[str, str]:
  """The type and the opcode at the beginning of an instruction's text."""
  depth = end = 0
  while end == 0 or depth:  # tuples may be nested
    depth += (text[end] == "(") - (text[end] == ")")
    end += 1
  end = text.index(" ", end)
  return text[:end], text[end + 1 :].partition("(")[0]


def _called(line: str) -> list[str]:
  """The computations that an instruction calls."""
  names = []
  for one, several in _CALLED.findall(line):
    names += [one] if one else several.replace(" ", "").split(",")
  return names


def _read(line: str, kind: str, shape: str, is_start: bool, partitions: int) -> Collective:
  devices = 2 if kind == "collective-permute" else _group_size(line, partitions)
  found = [
    (dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(shape)
  ]
  if is_start and kind == "collective-permute":
    found = found[1:2]  # operand, result, and the runtime's context
  elif is_start and kind == "all-gather":
    found = found[len(found) // 2 :]  # the operands, then the results
  if not found:
    raise ValueError(f"no array in {line}")
  if kind == "reduce-scatter":
    axis = int(_search(r"dimensions=\{(\d+)", line)[1])
    found = [(d, (*s[:axis], s[axis] * devices, *s[axis + 1 :])) for d, s in found]
  sources = _sources(line, len(found))
  arrays = tuple(Array(*array, source) for array, source in zip(found, sources, strict=True))
  return Collective(kind, arrays, devices, 1, True)


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


def _sources(line: str, count: int) -> list[str]:
  """One name for each array; the compiler joins the names of the collectives that it combines."""
  match = re.search(r'op_name="([^"]*)"', line)
  name = match[1] if match else ""
  prefix, _, joined = name.partition("/(")
  names = [f"{prefix}/{part}" for part in joined.removesuffix(")").split(":")]
  return names if len(names) == count > 1 else [name] * count


def _bits(dtype: str) -> int:
  match = re.search(r"\d+", dtype)
  return _BITS.get(dtype) or (int(match[0]) if match else 0)


def _search(pattern: str, text: str) -> re.Match[str]:
  match = re.search(pattern, text)
  if match is None:
    raise ValueError(f"{pattern} is not in {text}")
  return match
