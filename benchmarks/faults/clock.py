"""A clock that goes backwards, between two starts of a run and during a run."""

import pathlib
import signal
import subprocess

from benchmarks.faults.runs import STEPS, Bench, Outcome, Run, newest, same_end

# Preloaded before the C library: shifts the wall clock by $CLOCK_OFFSET seconds, and by $CLOCK_JUMP
# more after $CLOCK_AFTER seconds. Other clocks stay correct.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static double setting(const char *name) {
  const char *text = getenv(name);
  return text ? atof(text) : 0;
}

static long offset(void) {
  static long begin;
  struct timespec now;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  if (!begin) begin = now.tv_sec;
  double jump = now.tv_sec - begin >= setting("CLOCK_AFTER") ? setting("CLOCK_JUMP") : 0;
  return (long)(setting("CLOCK_OFFSET") + jump);
}

int clock_gettime(clockid_t clock, struct timespec *t) {
  int result = syscall(SYS_clock_gettime, clock, t);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) t->tv_sec += offset();
  return result;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""
DAY = 86400


def backwards(bench: Bench) -> Outcome:
  """The second start is ten days before the first; then a clock jumps back during training."""
  outcome = Outcome("clock going backwards")
  library = _compiled(bench.root)
  workdir = bench.new("clock")
  run = Run(workdir, environment={"LD_PRELOAD": library, "CLOCK_OFFSET": str(10 * DAY)})
  run.wait_for_step(STEPS // 2)
  run.signal_all(signal.SIGTERM)
  run.wait()
  first = newest(workdir)
  second = Run(workdir, environment={"LD_PRELOAD": library, "CLOCK_OFFSET": "0"})
  ended_well = second.wait() == 0 and f"at step {first} of {STEPS}" in second.output()
  alike = same_end(bench.whole, workdir)
  outcome.count(survived=ended_well and alike, kept=alike)
  for jump, after in ((-3600, 3), (-10 * DAY, 4), (-20 * 365 * DAY, 5)):
    workdir = bench.new("clock")
    settings = {"CLOCK_OFFSET": str(DAY), "CLOCK_JUMP": str(jump), "CLOCK_AFTER": str(after)}
    run = Run(workdir, environment={"LD_PRELOAD": library, **settings})
    ended_well = run.wait() == 0
    alike = same_end(bench.whole, workdir)
    outcome.count(survived=ended_well and alike, kept=alike)
    outcome.seen = run.line_with(f"step {STEPS}/")
  outcome.note = "ten days between two starts; an hour, ten days, twenty years in a run"
  return outcome


def _compiled(directory: pathlib.Path) -> str:
  source, library = directory / "clock.c", directory / "clock.so"
  source.write_text(SOURCE)
  subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
  return str(library)
