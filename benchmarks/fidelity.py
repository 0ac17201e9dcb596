"""Fidelity: our augmentation compared with Pillow's, our training steps with PyTorch's.

After `pip install -e '.[torch]'`, run from the repository's root:
  python -m benchmarks.fidelity [--batch=32] [--size=224] [--rounds=9] [--json=FILE]

First RandAugment's ops and policies: "max" and "mean" are the maximum and mean absolute difference
between the two in 8-bit levels, over arguments from the whole range. "beyond" is the share of
levels that differ by more than one. "images/s" is ours, jitted, on the device in the title; "Pillow
images/s" is Pillow's on one core, from image to image; "ratio" is the median over the rounds of
their quotient. In the policies' rows, both use the same random draws for the differences; for the
speed, Pillow makes its own. A difference of one level after the first layer can become several
after the second. The photographs are scikit-learn's two.

Then 20 training steps of a small ConvMixer from the golden files of
`tests/golden/make_trajectory.py`: losses of both, and their relative difference.
"""

from collections.abc import Callable
import random

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import sklearn.datasets

from benchmarks import rounds
from convmixer_jax.augment import geometric, photometric, policy, rand_augment
from convmixer_jax.augment.each import each
from convmixer_jax.augment.op import Interpolation, Op
from tests import pillow_augment, trajectory

FILL = (124, 116, 104)

# The ranges of the policies; for TRANSLATE, as fractions of the side.
RANGES = {
  Op.AUTO_CONTRAST: (0, 0),
  Op.EQUALIZE: (0, 0),
  Op.INVERT: (0, 0),
  Op.POSTERIZE: (0, 8),
  Op.SOLARIZE: (0, 256),
  Op.SOLARIZE_ADD: (0, 110),
  Op.BRIGHTNESS: (0.1, 1.9),
  Op.CONTRAST: (0.1, 1.9),
  Op.COLOR: (0.1, 1.9),
  Op.SHARPNESS: (0.1, 1.9),
  Op.ROTATE: (-30, 30),
  Op.SHEAR_X: (-0.3, 0.3),
  Op.SHEAR_Y: (-0.3, 0.3),
  Op.CENTRED_SHEAR_X: (-0.31, 0.31),
  Op.CENTRED_SHEAR_Y: (-0.31, 0.31),
  Op.TRANSLATE_X: (-0.45, 0.45),
  Op.TRANSLATE_Y: (-0.45, 0.45),
}


def photos() -> np.ndarray:
  """Random crops of the photographs: uint8 [batch, size, size, 3]."""
  size = flags.FLAGS.size
  rng = np.random.default_rng(0)
  sources = sklearn.datasets.load_sample_images().images
  details = []
  for i in range(flags.FLAGS.batch):
    source = sources[i % len(sources)]
    row, column = (rng.integers(0, side - size + 1) for side in source.shape[:2])
    details.append(source[row : row + size, column : column + size])
  return np.stack(details)


def row(
  name: str, span: str, ours: np.ndarray, pillows: np.ndarray, calls: dict[str, Callable]
) -> dict:
  """One row: differences of the results, and speed of the calls."""
  difference = np.abs(ours.astype(int) - pillows)
  times = rounds.interleaved(calls, flags.FLAGS.rounds)
  speed = {who: len(ours) / float(np.median(seconds)) for who, seconds in times.items()}
  return {
    "op": name,
    "range": span,
    "max": int(difference.max()),
    "mean": float(difference.mean()),
    "beyond": float((difference > 1).mean()),
    "images/s": speed["ours"],
    "Pillow images/s": speed["Pillow"],
    "ratio": float(np.median(times["Pillow"] / times["ours"])),
  }


def measure_op(image_bhwc: np.ndarray, op: Op, interpolation: Interpolation | None) -> dict:
  """The row of one op; a geometric op needs an interpolation."""
  low, high = RANGES[op]
  size = flags.FLAGS.size if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y) else 1
  argument_b = np.linspace(low, high, len(image_bhwc), dtype=np.float32) * np.float32(size)
  if op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD):
    argument_b = np.round(argument_b)
  op_b = jnp.full(len(image_bhwc), op, jnp.int32)
  device_image_bhwc, device_argument_b = jnp.asarray(image_bhwc), jnp.asarray(argument_b)

  @jax.jit
  def apply(image_bhwc: jax.Array, argument_b: jax.Array) -> jax.Array:
    if interpolation is None:
      return each(
        lambda *of_image: photometric.apply(*of_image, (op,)), None, image_bhwc, op_b, argument_b
      )
    transform = geometric.transform_of(op_b, argument_b)
    return each(
      lambda *of_image: geometric.affine(*of_image, interpolation, FILL),
      None,
      image_bhwc,
      transform,
    )

  def ours() -> jax.Array:
    return jax.block_until_ready(apply(device_image_bhwc, device_argument_b))

  images = [Image.fromarray(image) for image in image_bhwc]
  resample = pillow_augment.FILTERS[interpolation or Interpolation.NEAREST]
  arguments = argument_b.tolist()

  def pillows() -> list[Image.Image]:
    return [
      pillow_augment.apply(image, op, argument, resample, FILL)
      for image, argument in zip(images, arguments, strict=True)
    ]

  name = op.name if interpolation is None else f"{op.name} {interpolation.name.lower()}"
  span = "" if low == high else f"{low * size:g} to {high * size:g}"
  expected = np.stack([np.asarray(image) for image in pillows()])
  return row(name, span, np.asarray(ours()), expected, {"ours": ours, "Pillow": pillows})


def measure_policy(
  image_bhwc: np.ndarray, text: str, of_pillow: Callable[[Image.Image], Image.Image]
) -> dict:
  """The row of a whole policy."""
  parsed = policy.parse(text)
  keys = iter(jax.random.split(jax.random.key(0), flags.FLAGS.rounds + 2))
  jitted = jax.jit(lambda key, image: rand_augment.rand_augment(key, image, parsed, FILL))
  device_image_bhwc = jnp.asarray(image_bhwc)

  def ours() -> jax.Array:
    return jax.block_until_ready(jitted(next(keys), device_image_bhwc))

  images = [Image.fromarray(image) for image in image_bhwc]
  draws = rand_augment.draw(jax.random.key(0), len(image_bhwc), parsed)
  found = np.asarray(jax.jit(rand_augment.apply, static_argnums=(2, 3))(
    device_image_bhwc, draws, parsed, FILL
  ))  # fmt: skip
  expected = pillow_augment.replay(image_bhwc, draws, parsed, FILL)
  calls = {"ours": ours, "Pillow": lambda: [of_pillow(image) for image in images]}
  return row(text, "", found, expected, calls)


def print_trajectories() -> None:
  """The steps of each recipe, and the largest differences of the final variables."""
  for name in trajectory.RECIPES:
    golden, (losses, norms, variables) = trajectory.load(name), trajectory.run(name)
    print(f"\n20 steps, {name} recipe\nstep  loss PyTorch  loss ours  relative difference  norm")
    for step, row in enumerate(zip(golden["loss"], losses, norms, strict=True), 1):
      theirs, ours, norm = row
      print(f"{step:4}  {theirs:.7f}     {ours:.7f}  {abs(ours / theirs - 1):<19.1e}  {norm:.3f}")
    for part in ("batch_stats", "params"):
      differences = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), variables[part], golden["after"][part]
      )
      print(f"largest absolute difference of {part}: {max(jax.tree.leaves(differences)):.1e}")


def main(argv: list[str]) -> None:
  """Measures all rows and prints the tables."""
  del argv
  image_bhwc = photos()
  rng = random.Random(0)
  rows = [measure_op(image_bhwc, op, None) for op in RANGES if op < Op.ROTATE]
  rows += [
    measure_op(image_bhwc, op, interpolation)
    for op in RANGES
    if op >= Op.ROTATE
    for interpolation in Interpolation
  ]
  rows += [
    measure_policy(
      image_bhwc,
      "rand-m9-mstd0.5-inc1",
      lambda image: pillow_augment.timm_rand_augment(image, rng),
    ),
    measure_policy(
      image_bhwc,
      "torchvision-n2-m9",
      lambda image: pillow_augment.torchvision_rand_augment(image, 2, 9, rng),
    ),
  ]
  shape = "x".join(map(str, image_bhwc.shape))
  rounds.report(f"RandAugment on {shape} uint8 images", rows)
  print_trajectories()


if __name__ == "__main__":
  rounds.define_flags()
  flags.DEFINE_integer("batch", 32, "Images in a batch.", lower_bound=1)
  flags.DEFINE_integer("size", 224, "Their side, in pixels.", lower_bound=1, upper_bound=427)
  app.run(main)
