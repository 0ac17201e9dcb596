"""Injects every fault that a run has to survive, and counts what was lost.

Run from the repository's root:
  python -m benchmarks.faults [--only=NAME] [--seed=0] [--json=FILE]

Each run is a small one of `configs/digits.py`: the users' command in its own process, on one CPU
device. After each fault the same command is run again. It has to end like an undisturbed run: every
array of the last checkpoint and every evaluation are bit-for-bit the same.

Prints a table; exits with 1 if anything was lost or a fault was not survived. Mounting small file
systems needs root; without it, the faults that need one are skipped.
"""

import dataclasses
import json
import os
import pathlib
import random
import sys
import tempfile

from absl import app, flags
from absl import logging as absl_logging

from benchmarks.faults import arithmetic, clock, examples, kills, peers, starts, storage
from benchmarks.faults.runs import Bench, Outcome, finished

FAULTS = {
  "sigkill": kills.sigkill,
  "sigterm": kills.sigterm,
  "worker": kills.worker,
  "full_disk": storage.full_disk,
  "corrupt_checkpoint": storage.corrupt_checkpoint,
  "read_only": storage.read_only,
  "corrupt_examples": examples.corrupt_examples,
  "nan": arithmetic.not_a_number,
  "clock": clock.backwards,
  "peer": peers.one_of_two,
  "starts": starts.at_once,
}


def table(outcomes: list[Outcome]) -> str:
  """The outcomes as a Markdown table."""
  rows = [
    "| fault | tried | survived | data lost | last line the user sees | note |",
    "|---|---|---|---|---|---|",
  ]
  rows += [
    f"| {o.fault} | {o.tried} | {o.survived} | {o.lost} | `{o.seen}` | {o.note} |" for o in outcomes
  ]
  return "\n".join(rows)


def main(argv: list[str]) -> None:
  """Injects all faults, or those of --only."""
  del argv
  absl_logging.set_verbosity(absl_logging.ERROR)
  only = flags.FLAGS.only
  outcomes = []
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    whole = finished(root / "whole")
    for name in only or FAULTS:
      bench = Bench(root, random.Random(flags.FLAGS.seed), whole)
      try:
        outcome = FAULTS[name](bench)
      except PermissionError as error:
        print(f"{name}: skipped: {error}", file=sys.stderr)
        continue
      outcome.seen = outcome.seen.replace(str(root), "DIR")
      outcomes.append(outcome)
      print(f"{name}: {dataclasses.asdict(outcome)}", file=sys.stderr, flush=True)
  print(table(outcomes))
  if flags.FLAGS.json:
    pathlib.Path(flags.FLAGS.json).write_text(
      json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=2) + "\n"
    )
  sys.exit(any(o.lost or o.survived < o.tried for o in outcomes))


if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"
  flags.DEFINE_multi_enum("only", None, list(FAULTS), "Faults to inject; default all.")
  flags.DEFINE_integer("seed", 0, "Random seed of the moments and places.")
  flags.DEFINE_string("json", None, "JSON file for the counts.")
  app.run(main)
