"""Starts the same command several times at once on one workdir."""

import pathlib
import signal
import time

from benchmarks.faults.runs import STEPS, Bench, Outcome, Run, lines, newest, same_end

STARTS, TRIALS = 3, 20


def at_once(bench: Bench) -> Outcome:
  """Half of the workdirs contain a run that was just killed by SIGKILL."""
  outcome = Outcome(f"{STARTS} starts at once on one workdir")
  seconds, resumed = [], []
  for trial in range(TRIALS):
    workdir = bench.new("starts")
    if trial % 2:
      run = Run(workdir)
      run.wait_for_line(bench.random.randrange(1, STEPS // 2))
      run.signal_all(signal.SIGKILL)
      run.wait()
      resumed.append(newest(workdir))
    begin = time.monotonic()
    runs = [Run(workdir, log=workdir.with_name(f"{workdir.name}_{i}.log")) for i in range(STARTS)]
    waiting, losers = list(runs), []
    while waiting:
      time.sleep(0.05)
      ended = [run for run in waiting if run.process.poll() is not None]
      waiting = [run for run in waiting if run not in ended]
      losers += [run for run in ended if run.process.returncode]
      seconds += [time.monotonic() - begin for run in ended if run.process.returncode]
    told = [run.output().splitlines() for run in losers]
    clear = all(len(x) == 1 and f"{workdir} is in use by process" in x[0] for x in told)
    codes = sorted(run.process.returncode for run in runs)
    alike = same_end(bench.whole, workdir) and _metrics(workdir) == _metrics(bench.whole)
    outcome.count(survived=codes == [0, 1, 1] and clear and alike, kept=alike)
    outcome.seen = told[0][-1] if told and told[0] else outcome.seen
  outcome.note = (
    f"one trained to the end, the others ended with this one line, after at most "
    f"{max(seconds):.0f} s; latest checkpoints of the runs killed before: {resumed}"
  )
  return outcome


def _metrics(workdir: pathlib.Path) -> list[dict]:
  """All lines of the metrics, without timings."""
  return [{k: v for k, v in line.items() if k != "images_per_sec"} for line in lines(workdir)]
