"""The compiler's account of a program: memory, bytes, launches, collectives, time to compile."""

from collections.abc import Callable, Sequence
import dataclasses
import logging
import time
from typing import Any

import jax

from convmixer_jax.aot import collectives as collectives_lib
from convmixer_jax.aot import hlo

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Account:
  """What the compiler says of a program, on each device.

  Attributes:
    seconds: to lower and to compile it.
    refused: why the compiler made no program, in one line. Then all else is 0.
    arguments, temporaries: bytes in main memory.
    total: their sum, and that of the results that take no argument's place.
    moved: bytes read from and written to main memory by one step, see `Program.bytes_moved`.
    launches: kernels that a step launches.
    is_bounded: False if a loop's trip count is not known at compile time; `moved` and `launches`
      then count one iteration of it.
    collectives: see `collectives.collectives`.
    program: parsed.
  """

  seconds: float
  refused: str | None = None
  arguments: int = 0
  temporaries: int = 0
  total: int = 0
  moved: int = 0
  launches: int = 0
  is_bounded: bool = True
  collectives: Sequence[collectives_lib.Collective] = ()
  program: hlo.Program | None = dataclasses.field(default=None, repr=False)


def compiled(what: str, lower: Callable[[], jax.stages.Lowered]) -> Account:
  """Compiles a program and asks.

  Args:
    what: such as "the training step", for the log.
    lower: makes the program.
  """
  _log.info("compiling %s ...", what)
  start = time.perf_counter()
  lowered = lower()
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return Account(time.perf_counter() - start, refused=str(error).strip().splitlines()[0])
  return read(program, time.perf_counter() - start)


def read(compiled: Any, seconds: float) -> Account:
  """The account of a `jax.stages.Compiled`."""
  memory, program = compiled.memory_analysis(), hlo.Program(compiled.as_text())
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  runs = list(program.runs())
  return Account(
    seconds=seconds,
    arguments=arguments,
    temporaries=temporaries,
    total=arguments + temporaries + results,
    moved=round(sum(run.times * run.share * program.bytes_moved(run) for run in runs)),
    launches=round(sum(run.times * run.share for run in runs if hlo.is_work(run))),
    is_bounded=all(run.is_bounded for run in runs),
    collectives=collectives_lib.collectives(program),
    program=program,
  )
