"""`convmixer-convert`, or `python -m convmixer_jax.convert`: convert weights between formats.

  python -m convmixer_jax.convert convmixer_768_32_ks7_p7_relu.pth.tar 768.safetensors
  python -m convmixer_jax.convert runs/cifar10 cifar10.safetensors --layout=sequential
  python -m convmixer_jax.convert 768.safetensors directory

The source is anything that --init_from takes: a .safetensors or .pth file in timm's or the authors'
layout, the name of a released model, a directory that this project wrote, or the workdir of a run.
The target is a .safetensors file or, if it has no suffix, a directory with an Orbax checkpoint. It
is read back and must match bit for bit. The activation, the preprocessing and the class names are
copied if the source states them, and left unset otherwise.
"""

from collections.abc import Sequence
import pathlib
import shutil
from typing import Any

from absl import flags
import jax
import numpy as np

from convmixer_jax import cli, pretrained, storage
from convmixer_jax.errors import UserError
from convmixer_jax.pretrained import bundle
from convmixer_jax.pretrained.trained import TrainedModel


def convert(
  source: str, target: pathlib.Path, layout: str = "timm", activation: str | None = None
) -> int:
  """Writes the weights in `source` to `target`, and reads them back.

  Args:
    source: see `pretrained.load`.
    target: a .safetensors file, or a directory; it must not exist.
    layout: names in a file: "timm", or "sequential" (the authors').
    activation: overrides the source's; None keeps that, stated or not.

  Returns:
    The number of values: parameters and running statistics.

  Raises:
    UserError: if the source cannot be read, the target is refused by
      `check_target`, or the read-back differs; nothing is left behind.
  """
  check_target(target)
  weights = pretrained.read(source, activation=activation)
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    if target.suffix:
      pretrained.save(target, weights, layout=layout)
    else:
      bundle.save(target, weights)
    found = pretrained.told(target)
    if _told(found) != _told(weights) or not _is_same(weights.variables, found.variables):
      raise UserError(f"{target} was read back with other content, and is removed")
  except BaseException:
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    raise
  return sum(x.size for x in jax.tree.leaves(weights.variables))


def check_target(target: pathlib.Path) -> None:
  """Checks that `target` can be written; creates nothing.

  Raises:
    UserError: if it exists, cannot be written, or has an unsupported suffix.
  """
  if target.suffix not in ("", ".safetensors"):
    raise UserError(
      f"{target} ends with {target.suffix}: the target must be a .safetensors file, which PyTorch "
      "reads too, or a directory, without a suffix"
    )
  storage.check_new(target)


def _told(weights: TrainedModel) -> tuple[Any, ...]:
  """All that a target has to keep, apart from the variables."""
  return weights.model.norm_epsilon, weights.activation, weights.preprocessing


def _is_same(a: Any, b: Any) -> bool:
  """Whether two trees of the same structure have the same arrays, bit for bit."""
  same = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
  return all(jax.tree.leaves(same))


def main(argv: Sequence[str]) -> None:
  """Converts the source named on the command line."""
  if len(argv) != 3:
    raise UserError(f"expected a source and a target, got {len(argv) - 1} names; see --help")
  target = pathlib.Path(argv[2]).expanduser()
  options = flags.FLAGS
  count = convert(argv[1], target, options.layout, options.activation)
  print(f"{target}: {count:,} values, identical to {argv[1]}")


def run() -> None:
  """Runs the command line."""
  cli.define_activation()
  flags.DEFINE_enum("layout", "timm", ["timm", "sequential"], "Names of the arrays in a file.")
  cli.run(main)


if __name__ == "__main__":
  run()
