"""Learning-rate schedules by update step, counted from 0."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from convmixer_jax.errors import check_name


def onecycle(
  peak: float, epochs: int, steps_per_epoch: int, first_epoch: int = 0
) -> optax.Schedule:
  """The authors' piecewise-linear schedule, which is not PyTorch's OneCycleLR.

  As a function of the epoch t, it is 0 at t = 0, `peak` at 2/5 of the epochs, peak/20 at 4/5 and
  0 at the end, with the knots rounded down to whole epochs. Update i, counted from 0, has
  t = first_epoch + (i + 1) / steps_per_epoch, so the last update has learning rate 0. With
  `first_epoch=1`, as in the Cooper Union study, it is 0 for the whole last epoch. Source: the
  authors' timm, `onecycle_lr.py` and `train.py`.
  """
  knots = (0, 2 * epochs // 5, 4 * epochs // 5, epochs)
  values = (0.0, peak, peak / 20, 0.0)
  # In short runs two knots may have the same t; the later one wins.
  points = dict(zip(knots, values, strict=True))

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    t = first_epoch + (jnp.asarray(count, jnp.float32) + 1) / steps_per_epoch
    return jnp.interp(t, jnp.array(list(points), jnp.float32), jnp.array(list(points.values())))

  return schedule


def slanted_triangle(peak: float, steps: int) -> optax.Schedule:
  """Howard & Ruder's schedule: linear from peak/32 to `peak` in a tenth of the steps, then back."""
  cut = max(steps // 10, 1)
  return optax.join_schedules(
    [
      optax.linear_schedule(peak / 32, peak, cut),
      optax.linear_schedule(peak, peak / 32, max(steps - cut, 1)),
    ],
    [cut],
  )


# Name -> schedule, given (peak, epochs, steps per epoch, warm-up epochs, first epoch).
SCHEDULES: dict[str, Callable[[float, int, int, int, int], optax.Schedule]] = {
  "onecycle": lambda peak, epochs, steps, _, first: onecycle(peak, epochs, steps, first),
  "cosine": lambda peak, epochs, steps, warmup, _: optax.warmup_cosine_decay_schedule(
    0, peak, warmup * steps, epochs * steps
  ),
  "optax_onecycle": lambda peak, epochs, steps, *_: optax.cosine_onecycle_schedule(
    epochs * steps, peak
  ),
  "slanted_triangle": lambda peak, epochs, steps, *_: slanted_triangle(peak, epochs * steps),
  "constant": lambda peak, *_: optax.constant_schedule(peak),
}


def make_schedule(
  name: str,
  *,
  peak: float,
  epochs: int,
  steps_per_epoch: int,
  warmup_epochs: int = 0,
  first_epoch: int = 0,
) -> optax.Schedule:
  """The learning rate by update step, counted from 0.

  Args:
    name: "onecycle" (the authors'), "cosine" (to 0, after a linear warm-up), "optax_onecycle"
      (optax's cosine one-cycle with default arguments), "slanted_triangle" or "constant".
    peak: maximum learning rate.
    epochs: length of the schedule.
    steps_per_epoch: updates per epoch.
    warmup_epochs: for "cosine" only.
    first_epoch: for "onecycle" only.

  Raises:
    ValueError: if `name` is unknown.
  """
  check_name("schedule", name, SCHEDULES)
  return SCHEDULES[name](peak, epochs, steps_per_epoch, warmup_epochs, first_epoch)
