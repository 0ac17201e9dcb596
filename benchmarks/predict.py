"""Speed of `convmixer_jax.predict` on photographs, compared with PyTorch with Pillow and with timm.

Command:  python -m benchmarks.predict --rounds=3

All use the same random weights of 768/32 and the 50 JPEGs of the ImageNet sample, written to a
directory. PyTorch processes the files one after the other, as a short script would: Pillow decodes,
resizes and crops as in timm's evaluation, and batches go through the network. "timm" is the same
with timm's own model, if timm is installed.
"""

from collections.abc import Callable
import math
import pathlib
import sys
import tempfile
import time
import types

from absl import app, flags
import jax
import numpy as np
import PIL.Image
import torch

from benchmarks import rounds
from convmixer_jax import predict
from convmixer_jax.data.datasets import open_source
from convmixer_jax.model import names
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained import state_dict, trained
from tests.golden.torch_convmixer import conv_mixer, to_variables

NAME = "convmixer_768_32"


def write_photographs(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes the encoded files of the ImageNet sample unchanged."""
  files = []
  for split in ("train", "validation"):
    source = open_source("imagenet2012", split)
    for index, (encoded, _) in enumerate(source.read(range(len(source)))):
      files.append(directory / f"{split}{index:02}.jpg")
      files[-1].write_bytes(encoded)
  return files


def in_torch(
  network: torch.nn.Module, files: list[pathlib.Path], batch_size: int
) -> list[list[tuple[int, float]]]:
  """The five most likely classes of each file, with their probabilities."""
  told = trained.imagenet()
  mean, std = (torch.tensor(x).view(3, 1, 1) for x in (told.mean, told.std))

  def image(file: pathlib.Path) -> torch.Tensor:
    picture = PIL.Image.open(file).convert("RGB")
    short = math.floor(224 / 0.96)
    size = [int(short * side / min(picture.size)) for side in picture.size]
    left, top = (round((side - 224) / 2) for side in size)
    picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    pixels = np.array(picture.crop((left, top, left + 224, top + 224)))
    return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std

  found = []
  with torch.inference_mode():
    for start in range(0, len(files), batch_size):
      batch = torch.stack([image(file) for file in files[start : start + batch_size]])
      values, labels = network(batch).softmax(-1).topk(5)
      found += [
        list(zip(*row, strict=True)) for row in zip(labels.tolist(), values.tolist(), strict=True)
      ]
  return found


def timm_network(weights: dict[str, np.ndarray]) -> torch.nn.Module | None:
  """timm's model with these weights, or None without timm."""
  try:
    import torchvision  # noqa: F401
  except ImportError:  # timm imports it where this model does not need it
    for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets"):
      module = sys.modules[f"torchvision{name}"] = _Anything(f"torchvision{name}")
      parent, _, child = f"torchvision{name}".rpartition(".")
      if parent:
        setattr(sys.modules[parent], child, module)
  try:
    from timm.models import create_model
  except ImportError as error:
    print(f"without timm: {error}", file=sys.stderr)
    return None
  network = create_model(NAME)
  network.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
  return network.eval()


class _AnyClass(type):
  """The type of classes that have every attribute, each the string of its name."""

  def __getattr__(cls, name: str) -> str:
    if name.startswith("__"):
      raise AttributeError(name)
    return name


class _Anything(types.ModuleType):
  """A module with every name: imports from it succeed, but nothing in it works."""

  __path__ = ()

  def __getattr__(self, name: str) -> object:
    if name.startswith("__"):
      raise AttributeError(name)
    return _AnyClass(name, (), {})


def main(argv: list[str]) -> None:
  """Compares the probabilities, and prints images per second."""
  del argv
  options = flags.FLAGS
  settings = names.settings_of(NAME)
  torch.manual_seed(0)
  network = conv_mixer(**settings).eval()
  variables = to_variables(network)
  model = ConvMixer(**settings)
  forward, preprocessing = model.apply, trained.imagenet()
  batch = options.batch_size
  with tempfile.TemporaryDirectory() as directory:
    files = write_photographs(pathlib.Path(directory))[: options.images]
    calls: dict[str, Callable[[], list]] = {
      "ours": lambda: list(
        predict.predict(forward, variables, preprocessing, files, batch_size=batch)
      ),
      "torch": lambda: in_torch(network, files, batch),
    }
    theirs = timm_network(state_dict.from_variables(model, variables, "timm"))
    if theirs is not None:
      calls["torch timm"] = lambda: in_torch(theirs, files, batch)
    # The rounds find the compiled program in a cache, as a second command would.
    jax.config.update("jax_compilation_cache_dir", directory)
    start = time.perf_counter()
    list(predict.predict(forward, variables, preprocessing, files[:1], batch_size=batch))
    print(f"compilation and the first batch: {time.perf_counter() - start:.1f} s")
    few = files[:batch]
    ours = predict.predict(forward, variables, preprocessing, few, batch_size=batch)
    reference = in_torch(network, few, batch)
    for mine, other in zip(ours, reference, strict=True):
      np.testing.assert_allclose(
        [p for _, p in mine.classes], [p for _, p in other], rtol=1e-2, atol=1e-6
      )
    times = rounds.interleaved(calls, options.rounds)
  rows = [
    {
      "what": name,
      "batch": batch,
      "images/s": float(len(files) / np.median(seconds)),
      "PyTorch's time / this": rounds.ratio({**times, "ours": seconds}, "ours"),
    }
    for name, seconds in times.items()
  ]
  rounds.report(f"{NAME}, {len(files)} JPEGs without compilation", rows)


if __name__ == "__main__":
  rounds.define_flags()
  flags.DEFINE_integer("batch_size", 8, "Images per batch.")
  flags.DEFINE_integer("images", 50, "Number of photographs.")
  app.run(main)
