"""Kills one of the two processes of a run."""

import pathlib
import signal
import socket
import time

from benchmarks.faults.runs import SAVE_EVERY, SMALL, STEPS, Bench, Outcome, Run, newest, same_end

HEARTBEAT_SECONDS = 10
# Time for the coordinator to notice and inform the others, and for these to print and end.
STATED_SECONDS = 3 * HEARTBEAT_SECONDS
TRIALS = 1  # for each of the two


def one_of_two(bench: Bench) -> Outcome:
  """Kills process 0 or process 1; the other has to end within the stated time."""
  outcome = Outcome("SIGKILL of one of two processes")
  whole = bench.new("two_whole")
  if [run.wait() for run in _start(whole)] != [0, 0]:
    raise RuntimeError("the undisturbed run of two processes failed")
  seconds, own_words = [], 0
  for trial in range(2 * TRIALS):
    workdir = bench.new("two")
    runs = _start(workdir)
    runs[0].wait_for_line(bench.random.randrange(2 * SAVE_EVERY, STEPS // 2))
    good = newest(workdir)
    killed, other = runs[trial % 2], runs[1 - trial % 2]
    killed.signal_all(signal.SIGKILL)
    begin = time.monotonic()
    code = other.wait()
    seconds.append(round(time.monotonic() - begin, 1))
    killed.wait()
    told = "another process ended" in other.output()  # the run's own words, else JAX's
    outcome.seen = other.line_with(
      "another process ended" if told else "Terminating process because"
    )
    own_words += told
    ended = code not in (0, 999) and bool(outcome.seen) and seconds[-1] <= STATED_SECONDS
    kept = newest(workdir) >= good
    alike = [run.wait() for run in _start(workdir)] == [0, 0] and same_end(whole, workdir)
    outcome.count(survived=ended and alike, kept=kept and alike)
  outcome.note = (
    f"the other ended {seconds} s later, stated: {STATED_SECONDS} s at most; "
    f"{own_words} with our own message, the rest with JAX's"
  )
  return outcome


def _start(workdir: pathlib.Path) -> list[Run]:
  """Starts both processes, with one device each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  flags = [
    *SMALL,
    f"--config.run.heartbeat_seconds={HEARTBEAT_SECONDS}",
    f"--coordinator=127.0.0.1:{port}",
    "--num_processes=2",
  ]
  return [
    Run(workdir, [*flags, f"--process_id={i}"], log=workdir.with_name(f"{workdir.name}_{i}.log"))
    for i in range(2)
  ]
