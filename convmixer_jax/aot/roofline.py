"""The least time that a step can take: its operations and bytes over the peaks of a device."""

import dataclasses

from ml_collections import config_dict

from convmixer_jax.aot.targets import Chip

# Depthwise convolutions that multiply and add on the vector units; None is XLA's on accelerators.
# The others are products on the matrix units.
_ON_VECTOR_UNITS = (None, "native", "taps", "xla")


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of each unit of a device for one step.

  Attributes:
    matrix, vector, memory: operations of the matrix and of the vector units, and bytes, each over
      its peak. Of the vector units only the depthwise convolution is counted.
    images: in the step, on all devices.
  """

  matrix: float
  vector: float
  memory: float
  images: int

  @property
  def bound(self) -> float:
    """Images/s if all three overlap: no program is faster."""
    return self.images / max(self.matrix, self.vector, self.memory)

  @property
  def in_turn(self) -> float:
    """Images/s if nothing overlaps."""
    return self.images / (self.matrix + self.vector + self.memory)


def operations(config: config_dict.ConfigDict, *, train: bool) -> tuple[int, int]:
  """Multiplications and additions for one image: of dense products, and depthwise.

  They follow from the model's sizes: compilers do not count those of custom kernels, and of loops
  only one iteration. The backward pass takes twice those of the forward pass, and a
  rematerialization of the blocks as many again.
  """
  model = config.model
  positions = (config.data.image_size // model.patch_size) ** 2
  blocks = 2 * positions * model.depth * model.dim**2
  stem = 2 * positions * model.dim * len(config.augment.mean) * model.patch_size**2
  depthwise = 2 * positions * model.depth * model.dim * model.kernel_size**2
  ends = stem + 2 * model.dim * model.num_classes
  if not train:
    return blocks + ends, depthwise
  passes = 4 if config.parallel.remat in (True, "blocks") else 3
  return passes * blocks + 3 * ends, passes * depthwise


def roofline(
  config: config_dict.ConfigDict, chip: Chip, devices: int, moved: int, *, train: bool
) -> Roofline:
  """That of a step.

  Args:
    config: with the depthwise implementation that the step uses.
    chip: peaks of a device.
    devices: how many share the batch.
    moved: bytes of main memory that the step moves on each.
    train: a training step; else of an evaluation.
  """
  images = config.data.batch_size if train else config.data.eval_batch_size
  products, depthwise = operations(config, train=train)
  is_vector = config.model.depthwise in _ON_VECTOR_UNITS
  each = images / devices
  return Roofline(
    matrix=each * (products + (0 if is_vector else depthwise)) / chip.matrix,
    vector=each * (depthwise if is_vector else 0) / chip.vector,
    memory=moved / chip.bandwidth,
    images=images,
  )
