"""`convmixer-convert`, or `python -m convmixer_jax.convert`: weights into another kind of file.

  python -m convmixer_jax.convert convmixer_768_32_ks7_p7_relu.pth.tar 768.safetensors
  python -m convmixer_jax.convert runs/cifar10 cifar10.safetensors --layout=sequential
  python -m convmixer_jax.convert 768.safetensors directory

The source is what --init_from takes elsewhere: a .safetensors or .pth file in timm's or the
authors' layout, the name of a released model, a directory that this project wrote, or a run's
workdir. The target is a .safetensors file, or without a suffix a directory with an Orbax
checkpoint. It is read again and has to be the same in every bit. What the source tells besides, the
target tells too: the activation, how images are preprocessed and what the classes are called. What
the source does not tell stays open.
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
  """Writes the weights `source` to `target`, and reads them again.

  Args:
    source: see `pretrained.load`.
    target: a .safetensors file, or a directory; it must not exist.
    layout: of a file: "timm", or "sequential", the authors'.
    activation: instead of the source's; None to keep that, told or not.

  Returns:
    The number of parameters, running statistics among them.

  Raises:
    UserError: if the source cannot be read, the target is refused by
      `check_target`, or what was read again differs; nothing is left behind then.
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
      raise UserError(f"{target} was not what was written, and is removed")
  except BaseException:
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    raise
  return sum(x.size for x in jax.tree.leaves(weights.variables))


def check_target(target: pathlib.Path) -> None:
  """Looks whether `target` can be written; makes nothing.

  Raises:
    UserError: if it exists or cannot be written, or has another suffix.
  """
  if target.suffix not in ("", ".safetensors"):
    raise UserError(
      f"{target} ends with {target.suffix}: a target is a .safetensors file, which PyTorch reads "
      "too, or a directory, without a suffix"
    )
  storage.check_new(target)


def _told(weights: TrainedModel) -> tuple[Any, ...]:
  """All but the variables that a target has to keep."""
  return weights.model.norm_epsilon, weights.activation, weights.preprocessing


def _is_same(a: Any, b: Any) -> bool:
  """Whether two trees of the same names have the same arrays, bit for bit."""
  same = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
  return all(jax.tree.leaves(same))


def main(argv: Sequence[str]) -> None:
  """Converts what the command line names."""
  if len(argv) != 3:
    raise UserError(f"a source and a target are needed, not {len(argv) - 1} names; see --help")
  target = pathlib.Path(argv[2]).expanduser()
  options = flags.FLAGS
  count = convert(argv[1], target, options.layout, options.activation)
  print(f"{target}: {count:,} numbers, as in {argv[1]}")


def run() -> None:
  """The entry point."""
  cli.define_activation()
  flags.DEFINE_enum("layout", "timm", ["timm", "sequential"], "Names of a file's arrays.")
  cli.run(main)


if __name__ == "__main__":
  run()
