"""Times several calls in alternation, so that other load on the machine affects all alike."""

from collections.abc import Callable
import json
import platform
import time

from absl import flags
import jax
import numpy as np
import torch

Times = dict[str, np.ndarray]


def define_flags() -> None:
  """Defines the flags that the benchmarks share."""
  flags.DEFINE_integer("rounds", 9, "How often each call is timed.")
  flags.DEFINE_string("json", None, "File for all figures, with hardware and versions.")


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> Times:
  """Seconds of each call in each round, [rounds], after one untimed call of each."""
  times: dict[str, list[float]] = {name: [] for name in calls}
  for round_number in range(rounds + 1):
    for name, call in calls.items():
      call()  # not timed: what ran before has given memory back, and its threads may still spin
      start = time.perf_counter()
      call()
      if round_number:
        times[name].append(time.perf_counter() - start)
  return {name: np.array(seconds) for name, seconds in times.items()}


def ratio(times: Times, of: str) -> float:
  """How many times faster `of` is than the fastest PyTorch row: median over the rounds.

  The fastest PyTorch row is the one with the smallest median.
  """
  best = min(
    (name for name in times if name.startswith("torch")), key=lambda n: np.median(times[n])
  )
  return float(np.median(times[best] / times[of]))


def report(title: str, rows: list[dict]) -> None:
  """Prints the rows as a table, and writes them to --json."""
  print(f"{title}; JAX {jax.__version__}, PyTorch {torch.__version__}, {_device()}")
  names = list(rows[0])
  cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
  widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
  for line in (names, *cells):
    print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
  if flags.FLAGS.json:
    result = {"title": title, "device": _device(), "jax": jax.__version__}
    result |= {"torch": torch.__version__, "rounds": flags.FLAGS.rounds, "rows": rows}
    with open(flags.FLAGS.json, "w") as file:
      json.dump(result, file, indent=2)


def _device() -> str:
  return f"{jax.devices()[0].device_kind} ({platform.machine()}, {torch.get_num_threads()} threads)"
