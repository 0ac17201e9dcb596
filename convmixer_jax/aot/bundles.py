"""Counts the cycles of a TPU program in its final VLIW schedule, as libtpu dumps it.

A bundle takes one cycle, and those of its delays. Stalls of memory and DMA are not in the schedule.
"""

import dataclasses
import re

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+((?:[A-Z]{2},?)+)?\s*:\s+((?:> ?)*)\{(.*)")
_EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder %\w+, (%?\w+) /\*[^*]*loop exit")
_DELAY = re.compile(r"vdelay (\d+)")
_VMATMUL = re.compile(r"\bvmatmul((?:\.\w+)*)")


@dataclasses.dataclass
class _Bundle:
  """One line of the schedule: whether a loop begins at it, how many it is in, and its code."""

  begins_loop: bool
  depth: int
  code: str


def cycles(text: str) -> int:
  """The cycles of a schedule, with the trip counts of its loops. Unknown ones count once."""
  total = 0
  for bundle, times in _weighted(text):
    delay = _DELAY.search(bundle.code)
    total += times * (1 + (int(delay[1]) if delay else 0))
  return total


def product_rows(text: str) -> int:
  """The rows that it feeds to the matrix units, each of which takes one in a cycle.

  A `vmatmul` feeds a register: 16 rows in bfloat16, and 8 in float32 or from the `lmr`, as the
  number of `vpop` that fetch its results shows.
  """
  return sum(
    times * sum(8 if re.search(r"f32|lmr", kind) else 16 for kind in _VMATMUL.findall(bundle.code))
    for bundle, times in _weighted(text)
  )


def _weighted(text: str) -> list[tuple[_Bundle, int]]:
  """The bundles, and how often each is run."""
  bundles = _read(text.split("= control target key end")[-1])
  times = [1] * len(bundles)
  loops = _loops(bundles)
  for first, last in loops:
    inner = [loop for loop in loops if first < loop[0] and loop[1] <= last]
    own = (
      bundles[i].code
      for i in range(first, last + 1)
      if not any(begin <= i <= end for begin, end in inner)
    )
    exits = [found for code in own for found in _EXIT.findall(code)]
    if exits and exits[-1].isdigit():
      for i in range(first, last + 1):
        times[i] *= int(exits[-1])
  return list(zip(bundles, times, strict=True))


def _read(text: str) -> list[_Bundle]:
  bundles: list[_Bundle] = []
  for line in text.splitlines():
    if match := _BUNDLE.match(line):
      labels = (match[1] or "").split(",")
      bundles.append(_Bundle("LB" in labels, match[2].count(">"), match[3]))
    elif bundles:
      bundles[-1].code += line
  return bundles


def _loops(bundles: list[_Bundle]) -> list[tuple[int, int]]:
  """The first and the last bundle of each loop; inner loops come after the outer ones.

  Single bundles in the middle of a loop may be marked as outside of it.
  """
  loops = []
  for first, bundle in enumerate(bundles):
    if not bundle.begins_loop:
      continue
    last = first
    for i, other in enumerate(bundles[first + 1 :], first + 1):
      if other.begins_loop and other.depth <= bundle.depth:
        break
      if other.depth >= bundle.depth:
        last = i
    loops.append((first, last))
  return loops
