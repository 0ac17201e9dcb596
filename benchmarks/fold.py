"""What folding BatchNorm into the convolutions could gain in evaluation, at the very most.

Command:  python -m benchmarks.fold
"folded" has every fold that is exact: the offset of each depthwise norm in the pointwise bias
after it, and the last norm in the head. "none" leaves all norms out, which is another model: no
fold can be faster. See docs/use.md for why the other norms cannot be folded.
"""

import copy
import functools
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import turns
from convmixer_jax import act_norm
from convmixer_jax.depthwise import depthwise_conv_cbhw
from convmixer_jax.model import ConvMixer

EPSILON = 1e-5


def affine(variables: Any, *path: str) -> tuple[jax.Array, jax.Array]:
  """A norm's factor and offset in evaluation."""
  params, stats = variables["params"], variables["batch_stats"]
  for name in path:
    params, stats = params[name], stats[name]
  factor = params["scale"] / jnp.sqrt(stats["var"] + EPSILON)
  return factor, params["bias"] - stats["mean"] * factor


def fold(variables: Any, depth: int) -> Any:
  """[(factor or None, offset or None)] of the norms in their order, and the other parameters."""
  params = copy.deepcopy(jax.tree.map(np.asarray, variables["params"]))
  norms = [affine(variables, "stem_norm")]
  for i in range(depth):
    block = params[f"blocks_{i}"]
    factor, offset = affine(variables, f"blocks_{i}", "depthwise_norm")
    block["pointwise"]["bias"] = (
      block["pointwise"]["bias"] + offset @ block["pointwise"]["kernel"][0, 0]
    )
    norms += [(factor, None), affine(variables, f"blocks_{i}", "pointwise_norm")]
  factor, offset = norms[-1]
  head = params["head"]
  params["head"] = {
    "kernel": factor[:, None] * head["kernel"],
    "bias": head["bias"] + offset @ head["kernel"],
  }
  return params, [*norms[:-1], (None, None)]


def forward(params: Any, norms: list, image_bhwc: jax.Array, *, model: ConvMixer) -> jax.Array:
  """The evaluation with the channels outermost, each norm as it is in `norms`."""
  b, h, w, c = image_bhwc.shape
  p, rest = model.patch_size, iter(norms)
  activation = act_norm.ACTIVATIONS[model.activation][0]

  def normed(y: jax.Array, layer: Any) -> jax.Array:
    y = activation(y + layer["bias"][:, None, None, None])
    factor, offset = next(rest)
    y = y if factor is None else y * factor[:, None, None, None]
    return y if offset is None else y + offset[:, None, None, None]

  def mixed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return (kernel.T @ x.reshape(len(kernel), -1)).reshape(-1, *x.shape[1:])

  x = image_bhwc.reshape(b, h // p, p, w // p, p, c).transpose(2, 4, 5, 0, 1, 3)
  x = x.reshape(-1, b, h // p, w // p)
  x = normed(mixed(x, params["stem"]["kernel"].reshape(-1, model.dim)), params["stem"])
  for i in range(model.depth):
    block = params[f"blocks_{i}"]
    y = depthwise_conv_cbhw(x, block["depthwise"]["kernel"][:, :, 0], implementation="taps")
    x = x + normed(y, block["depthwise"])
    x = normed(mixed(x, block["pointwise"]["kernel"][0, 0]), block["pointwise"])
  return x.mean((2, 3)).T @ params["head"]["kernel"] + params["head"]["bias"]


def main(argv: list[str]) -> None:
  """Prints milliseconds, and the median ratio to the model as it is."""
  del argv
  model = ConvMixer(256, 8, 5, 2, 10, layout="cbhw", depthwise="taps")
  image_bhwc = np.random.default_rng(0).standard_normal((16, 32, 32, 3), np.float32)
  variables = model.init(jax.random.key(0), image_bhwc)
  variables = jax.tree.map(
    lambda x: x + 0.1 * jax.random.uniform(jax.random.key(1), x.shape), variables
  )
  run = jax.jit(functools.partial(forward, model=model))
  plain = [affine(variables, "stem_norm")]
  for i in range(model.depth):
    plain += [
      affine(variables, f"blocks_{i}", f"{name}_norm") for name in ("depthwise", "pointwise")
    ]
  params, norms = fold(variables, model.depth)
  expected = model.apply(variables, image_bhwc)
  for arguments in ((variables["params"], plain), (params, norms)):
    np.testing.assert_allclose(run(*arguments, image_bhwc), expected, rtol=1e-4, atol=1e-4)
  nothing = [(None, None)] * len(norms)
  calls = {
    "as it is": lambda: jax.block_until_ready(run(variables["params"], plain, image_bhwc)),
    "folded": lambda: jax.block_until_ready(run(params, norms, image_bhwc)),
    "none": lambda: jax.block_until_ready(run(params, nothing, image_bhwc)),
  }
  times = turns.in_turns(calls, flags.FLAGS.rounds)
  rows = [
    {
      "norms": name,
      "ms": float(np.median(seconds) * 1e3),
      "faster by": float(np.median(times["as it is"] / seconds)),
    }
    for name, seconds in times.items()
  ]
  turns.report("256/8 k5 p2, evaluation of 16 images of 32 pixels", rows)


if __name__ == "__main__":
  turns.define_flags()
  app.run(main)
