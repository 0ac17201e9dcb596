"""The report of `python -m convmixer_jax.compile`: as JSON, and as text."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from convmixer_jax.aot import advice, cycles, roofline
from convmixer_jax.aot.account import Account
from convmixer_jax.aot.candidates import Candidate
from convmixer_jax.aot.collectives import part
from convmixer_jax.aot.targets import Target

Report = dict[str, Any]


def of_program(
  account: Account, target: Target, limits: roofline.Roofline | None, parameter_sizes: set[int]
) -> Report:
  """What is told of a step.

  Args:
    account: the compiler's.
    target: the devices.
    limits: of the step; None if the devices' peaks are not known.
    parameter_sizes: numbers of elements of the parameters, to recognize gradients.
  """
  found: Report = {"seconds": round(account.seconds, 1), "refused": account.refused}
  if account.refused is not None:
    return found
  found |= {
    "arguments": account.arguments,
    "temporaries": account.temporaries,
    "total": account.total,
    "bytes_moved": account.moved,
    "launches": account.launches,
    "is_bounded": account.is_bounded,
    "collectives": _collectives(account, target, parameter_sizes),
  }
  if limits is not None:
    found["roofline"] = {
      "matrix_ms": 1e3 * limits.matrix,
      "vector_ms": 1e3 * limits.vector,
      "memory_ms": 1e3 * limits.memory,
      "images_per_second": limits.bound,
      "images_per_second_in_turn": limits.in_turn,
    }
  return found


def _collectives(account: Account, target: Target, sizes: set[int]) -> list[Report]:
  """One row for each kind of collective and part of the step."""
  rows: dict[tuple[str, str, bool], Report] = defaultdict(
    lambda: {"operations": 0, "arrays": 0, "bytes": 0, "sent": 0.0, "covered": 0.0}
  )
  for one in account.collectives:
    parts = [part(one.kind, x, s, sizes) for x, s in zip(one.arrays, one.sources, strict=True)]
    share = one.traffic / one.bytes if one.bytes else 0.0
    for name, array in zip(parts, one.arrays, strict=True):
      row = rows[one.kind, name, one.is_async]
      row["arrays"] += one.times
      row["bytes"] += one.times * array.bytes
      row["sent"] += one.times * array.bytes * share
    for name in set(parts):
      row = rows[one.kind, name, one.is_async]
      row["operations"] += one.times
      row["covered"] += one.times * one.covered
  names = ("kind", "part", "is_async")
  found = [dict(zip(names, key, strict=True), **row) for key, row in rows.items()]
  if target.peaks is not None:
    for row in found:
      row["milliseconds"] = 1e3 * row["sent"] / target.peaks.link
      row["covered_ms"] = 1e3 * row["covered"] / target.peaks.bandwidth
  return found


def of_candidates(winner: Candidate, found: Sequence[Candidate], why: str) -> Report:
  """What is told of the depthwise convolution."""
  return {
    "expected": winner.implementation,
    "why": why,
    "candidates": [
      {
        "implementation": one.implementation,
        "refused": one.account.refused,
        "seconds": round(one.account.seconds, 1),
        "temporaries": one.account.temporaries,
        "bytes_moved": one.account.moved,
        "milliseconds": one.milliseconds,
      }
      for one in found
    ],
  }


def of_trials(trials: Sequence[advice.Trial]) -> list[Report]:
  """What is told of the settings that were tried, in their order."""
  return [
    {
      "settings": trial.settings,
      "fits": trial.fits,
      "total": trial.account.total,
      "refused": trial.account.refused,
      "seconds": round(trial.account.seconds, 1),
    }
    for trial in trials
  ]


def text(report: Report) -> str:
  """The report for a terminal."""
  return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
  yield (
    f"{report['config']} for {report['devices']} x {report['device_kind']} ({report['target']}), "
    f"batch {report['batch_size']:,}, {report['compiler']}. Nothing was run: this is the "
    "compiler's account."
  )
  if "depthwise" in report:
    yield from _depthwise(report["depthwise"])
  for name, title in (("train", "Training step"), ("eval", "Evaluation step")):
    yield f"\n{title}"
    yield from _program(report[name], report["memory"])
  yield "\n" + report["verdict"]
  for trial in report["trials"]:
    yield f"  {_trial(trial)}"
  if "cycles" in report:
    yield from _cycles(report["cycles"])


def _depthwise(found: Report) -> Iterator[str]:
  yield f"\nDepthwise convolution: expect {found['expected']}; {found['why']}"
  for one in found["candidates"]:
    if one["refused"]:
      yield f"  {one['implementation']}: refused: {one['refused']}"
      continue
    yield (
      f"  {one['implementation']}: one block moves {one['bytes_moved'] / 1e9:.2f} GB, temporaries "
      f"{_gib(one['temporaries'])}, compiled in {one['seconds']:.0f} s"
    )


def _program(found: Report, memory: int) -> Iterator[str]:
  if found["refused"]:
    yield f"  refused by the compiler after {found['seconds']:.0f} s: {found['refused']}"
    return
  yield (
    f"  memory of a device: {_gib(found['total'])} of {_gib(memory)} (arguments "
    f"{_gib(found['arguments'])}, temporaries {_gib(found['temporaries'])})"
  )
  at_least = "" if found["is_bounded"] else "at least "
  yield (
    f"  {at_least}{found['bytes_moved'] / 1e9:.2f} GB moved and {found['launches']:,} launches on "
    f"a device; {found['operations_per_image'] / 1e9:.1f} G operations for an image; compiled in "
    f"{found['seconds']:.0f} s"
  )
  if limits := found.get("roofline"):
    yield (
      f"  roofline: at most {limits['images_per_second']:,.0f} images/s, "
      f"{limits['images_per_second_in_turn']:,.0f} if nothing overlaps (matrix units "
      f"{limits['matrix_ms']:.1f} ms, vector units {limits['vector_ms']:.1f}, memory "
      f"{limits['memory_ms']:.1f})"
    )
  if not found["collectives"]:
    yield "  collectives: none"
  for row in found["collectives"]:
    yield f"  {_collective(row)}"


def _collective(row: Report) -> str:
  if not row["is_async"]:
    overlap = "the program waits for it"
  else:
    overlap = f"while {row['covered'] / 1e9:.2f} GB of other work are moved"
    if "covered_ms" in row:
      overlap += f", {row['covered_ms']:.2f} ms"
  times = f"{row['operations']} x " if row["operations"] != 1 else ""
  least = f", {row['milliseconds']:.2f} ms at the links' peak" if "milliseconds" in row else ""
  return (
    f"{times}{row['kind']} of {row['part']}: {row['bytes'] / 1e6:,.2f} MB, "
    f"{row['sent'] / 1e6:,.2f} sent by each device{least}; {overlap}"
  )


def _trial(trial: Report) -> str:
  settings = " ".join(f"--config.{key}={value}" for key, value in trial["settings"].items())
  settings = settings or "as it is"
  if trial["refused"]:
    return f"{settings}: refused after {trial['seconds']:.0f} s: {trial['refused']}"
  does = "fits" if trial["fits"] else "does not fit"
  return f"{settings}: {_gib(trial['total'])}, {does}"


def _cycles(found: Report) -> Iterator[str]:
  yield "\nCycles of the training step, in millions"
  for name, one in found["parts"].items():
    yield f"  {name}: {one['bundles'] / 1e6:.1f}, with floors {one['with_floors'] / 1e6:.1f}"
  yield (
    f"  all: {found['bundles'] / 1e6:.1f}, with floors {found['with_floors'] / 1e6:.1f}, which is "
    f"{found['images_per_second']:,.0f} images/s on all devices"
  )
  yield f"  {cycles.BLIND_SPOTS}"


def _gib(size: int) -> str:
  return f"{size / 2**30:.2f} GiB"
