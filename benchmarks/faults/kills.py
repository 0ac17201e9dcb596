"""Kills or stops processes: the run itself, and its data workers."""

import os
import pathlib
import signal
import time

from benchmarks.faults.runs import (
  SAVE_EVERY,
  SMALL,
  STEPS,
  Bench,
  Outcome,
  Run,
  finished,
  last_step,
  newest,
  same_end,
  saves_under_way,
)

KILLS, TERMS, WORKER_KILLS = 20, 3, 3


def sigkill(bench: Bench) -> Outcome:
  """Kills runs repeatedly: during the start, between steps, and half of them during a save."""
  outcome = Outcome("SIGKILL of the run")
  workdir, alike = bench.new("sigkill"), True
  in_save = 0
  resumed: list[int] = []
  while len(resumed) < KILLS:
    before = newest(workdir)
    run = Run(workdir)
    if len(resumed) % 2:
      _wait_for_save(run, bench.random.choice((1, 1, 2)))
      time.sleep(bench.random.uniform(0, 0.05))
    elif len(resumed) % 4:
      run.wait_for_line(last_step(workdir) + bench.random.randrange(1, 2 * SAVE_EVERY))
      time.sleep(bench.random.uniform(0, 0.2))
    else:
      time.sleep(bench.random.uniform(0, 8))
    run.signal_all(signal.SIGKILL)
    if run.wait() != -signal.SIGKILL:  # it had already ended: not counted as a kill
      if newest(workdir) != STEPS:
        raise RuntimeError(run.output())
      alike &= same_end(bench.whole, workdir)
      workdir = bench.new("sigkill")
      continue
    in_save += bool(len(resumed) % 2 and saves_under_way(workdir))  # not from an earlier kill
    resumed.append(newest(workdir))
    outcome.count(survived=newest(workdir) >= before, kept=newest(workdir) >= before)
  if not (bench.ends_alike(workdir) and alike):
    outcome.survived, outcome.lost = 0, outcome.tried
  outcome.seen = "(nothing: it was killed)"
  outcome.note = f"{in_save} inside a save; latest checkpoints after them: {resumed}"
  return outcome


def sigterm(bench: Bench) -> Outcome:
  """Preempts runs at random steps; the last one with data workers, which get the signal too."""
  outcome = Outcome("SIGTERM (preemption)")
  steps = []
  for trial in range(TERMS):
    workdir = bench.new("sigterm")
    workers = ["--config.run.workers=2", "--config.data.cache=none"] if trial == TERMS - 1 else []
    whole = bench.whole
    if workers:  # data.cache is part of the config
      whole = finished(bench.new("with_workers"), [*SMALL, *workers])
    run = Run(workdir, [*SMALL, *workers])
    run.wait_for_line(bench.random.randrange(SAVE_EVERY, STEPS - 4 * SAVE_EVERY))
    run.signal_all(signal.SIGTERM)
    code = run.wait()
    saved = newest(workdir)
    stopped = code == 128 + signal.SIGTERM and 0 < saved < STEPS and not saves_under_way(workdir)
    steps.append(saved)
    outcome.seen = run.line_with("SIGTERM: ")
    alike = Run(workdir, [*SMALL, *workers]).wait() == 0 and same_end(whole, workdir)
    outcome.count(survived=stopped and alike, kept=alike)
  outcome.note = f"exit code 143, saved at steps {steps}; the last one with two data workers"
  return outcome


def worker(bench: Bench) -> Outcome:
  """Kills a process that prepares batches; the run continues with new ones."""
  outcome = Outcome("SIGKILL of a data worker")
  flags = [*SMALL, "--config.run.workers=2", "--config.data.cache=none"]
  whole = finished(bench.new("whole_workers"), flags)
  seconds = []
  for _ in range(WORKER_KILLS):
    workdir = bench.new("worker")
    run = Run(workdir, flags)
    run.wait_for_line(bench.random.randrange(SAVE_EVERY, STEPS - 6 * SAVE_EVERY))
    children = _workers(run.process.pid)
    begin = time.monotonic()
    os.kill(bench.random.choice(children), signal.SIGKILL)
    ended_well = run.wait() == 0
    seconds.append(round(time.monotonic() - begin, 1))
    alike = same_end(whole, workdir)
    outcome.count(survived=ended_well and alike, kept=alike)
    outcome.seen = run.line_with("Restarting the workers") or outcome.seen
  outcome.note = f"the run ended well, without a restart, {seconds} s later"
  return outcome


def _workers(parent: int) -> list[int]:
  """The processes that a run has started to prepare batches."""
  found = []
  for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = status.read_text().rpartition(")")[2].split()
      command = (status.parent / "cmdline").read_bytes()
    except OSError:
      continue  # it has ended
    if int(fields[1]) == parent and b"spawn_main" in command:
      found.append(int(status.parent.name))
  return found


def _wait_for_save(run: Run, count: int) -> None:
  """Waits until the save of this number, counted from now, is in progress, or the run ends."""
  seen = set(saves_under_way(run.workdir))  # from an earlier kill; the start removes them
  while run.process.poll() is None and count:
    now = set(saves_under_way(run.workdir))
    count -= bool(now - seen)
    seen = now
    time.sleep(0.001)
