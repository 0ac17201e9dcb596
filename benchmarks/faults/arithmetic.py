"""Numbers that are not finite, in a gradient or in the update of a parameter.

As a script, it runs the training command with such a fault:
  python -m benchmarks.faults.arithmetic gradient|update STEP [flags of convmixer_jax.main]
"""

import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.faults.runs import (
  SAVE_EVERY,
  SMALL,
  STEPS,
  Bench,
  Outcome,
  Run,
  final_state,
  newest,
)
from convmixer_jax import main
from convmixer_jax.training import build, loop, step


def not_a_number(bench: Bench) -> Outcome:
  """Injects each kind at a random step that is followed by a save, and at the step before."""
  outcome = Outcome("NaN in a gradient or an update")
  for kind in POISONED:
    due = bench.random.randrange(3, STEPS // SAVE_EVERY - 2) * SAVE_EVERY
    for moment in (due - 1, due):
      workdir = bench.new("nan")
      command = ("-m", "benchmarks.faults.arithmetic", kind, str(moment))
      run = Run(workdir, SMALL, command=command)
      code = run.wait()
      clear = "The last good checkpoint" in run.last_line()
      outcome.seen = run.last_line()
      finite = newest(workdir) > 0 and all(np.isfinite(x).all() for x in final_state(workdir))
      alike = bench.ends_alike(workdir)
      outcome.count(survived=code == 1 and clear and finite and alike, kept=finite and alike)
  outcome.note = "every checkpoint was finite; without the fault the command resumes from it"
  return outcome


def experiment(kind: str, moment: int) -> type[loop.Experiment]:
  """An `Experiment` with the fault at step `moment`, counted from 1.

  All other steps run the unmodified program, so their numbers are bit-for-bit the same.
  """

  class Poisoned(loop.Experiment):
    def __init__(self, *settings):
      with mock.patch.object(build, "train_step", POISONED[kind]):
        super().__init__(*settings)
      spoiled = self.train_step
      super().__init__(*settings)
      sound = self.train_step

      def train_step(state, batch):
        is_now = jax.device_get(state.step) + 1 == moment
        return (spoiled if is_now else sound)(state, batch)

      self.train_step = train_step

  return Poisoned


def _of_gradient(state, batch, **settings):
  make = step._gradient_fn

  def gradient_fn(*arguments):
    original = make(*arguments)

    def spoiled(*values):
      gradients, rest = original(*values)
      return _spoil(gradients), rest

    return spoiled

  with mock.patch.object(step, "_gradient_fn", gradient_fn):
    return step.train_step(state, batch, **settings)


def _of_update(state, batch, *, optimizer, **settings):
  def update(*values):
    updates, opt_state = optimizer.update(*values)
    return _spoil(updates), opt_state

  spoiled = optax.GradientTransformation(optimizer.init, update)
  return step.train_step(state, batch, optimizer=spoiled, **settings)


def _spoil(tree):
  return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)


POISONED = {"gradient": _of_gradient, "update": _of_update}


if __name__ == "__main__":
  own, sys.argv[1:] = sys.argv[1:3], sys.argv[3:]
  loop.Experiment = experiment(own[0], int(own[1]))  # type: ignore[misc]
  main.run()
