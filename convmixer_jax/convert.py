"""`convmixer-convert`, or `python -m convmixer_jax.convert`: weights into another kind of file.

  python -m convmixer_jax.convert convmixer_768_32_ks7_p7_relu.pth.tar 768.safetensors
  python -m convmixer_jax.convert runs/cifar10 cifar10.safetensors --layout=sequential
  python -m convmixer_jax.convert 768.safetensors directory

The source is what --init_from takes elsewhere: a .safetensors or .pth file in timm's or the
authors' layout, the name of a released model, a directory that this project wrote, or a run's
workdir. The target is a .safetensors file, or without a suffix a directory with an Orbax
checkpoint. It is read again and has to be the same in every bit.
"""

from collections.abc import Sequence
import pathlib
import shutil
from typing import Any

from absl import flags
import jax
import numpy as np

from convmixer_jax import bundle, command, pretrained
from convmixer_jax.errors import UserError


def convert(
  source: str, target: pathlib.Path, layout: str = "timm", activation: str | None = None
) -> int:
  """Writes the weights `source` to `target`, and reads them again.

  Args:
    source: see `pretrained.load`.
    target: a .safetensors file, or a directory; it must not exist.
    layout: of a file: "timm", or "sequential", the authors'.
    activation: of a source that does not tell it.

  Returns:
    The number of parameters, running statistics among them.

  Raises:
    UserError: if the source cannot be read, the target exists or has another
      suffix, or what was read again differs; nothing is left behind then.
  """
  if target.exists():
    raise UserError(f"{target} exists already")
  if target.suffix not in ("", ".safetensors"):
    raise UserError(
      f"{target} ends with {target.suffix}: a target is a .safetensors file, which PyTorch reads "
      "too, or a directory, without a suffix"
    )
  model, variables = pretrained.load(source, activation=activation)
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    if target.suffix:
      pretrained.save_torch(target, model, variables, layout=layout)
      _, found = pretrained.load_torch(target)
    else:
      bundle.save(target, model, variables)
      _, found = bundle.load(target)
    if not _is_same(variables, found):
      raise UserError(f"{target} was not what was written, and is removed")
  except BaseException:
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    raise
  return sum(x.size for x in jax.tree.leaves(variables))


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
  command.define_activation()
  flags.DEFINE_enum("layout", "timm", ["timm", "sequential"], "Names of a file's arrays.")
  command.run(main)


if __name__ == "__main__":
  run()
