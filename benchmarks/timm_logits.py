"""Logits of a full-size model compared with timm's, for the same random weights.

Command:  pip install -e '.[torch]' && pip install --no-deps timm safetensors huggingface_hub
          python -m benchmarks.timm_logits [convmixer_768_32 ...]

timm imports torchvision only for its image pipeline. Where torchvision is not installed, an empty
stand-in replaces it here.
"""

import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
import torch

from convmixer_jax import pretrained


class _StandIn:
  """Imports every module of torchvision as a mock with all names."""

  def find_spec(self, name, path=None, target=None):
    """Finds modules below torchvision."""
    if name.partition(".")[0] == "torchvision":
      return importlib.machinery.ModuleSpec(name, self, is_package=True)
    return None

  def create_module(self, spec):
    """A mock module."""
    return mock.MagicMock(name=spec.name)

  def exec_module(self, module):
    """Does nothing: a mock has no code."""


def compare(name: str, batch_size: int = 2) -> dict[str, float | str]:
  """The largest differences in both directions: timm's weights read by us, ours read by timm."""
  import timm

  torch.manual_seed(0)
  theirs = timm.create_model(name).eval()
  with torch.no_grad():  # statistics other than the initial ones, as after training
    for module in theirs.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.running_mean.normal_(0.1, 0.1)
        module.running_var.uniform_(0.2, 0.6)
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_(0, 0.1)
  image_bchw = torch.randn(batch_size, 3, 224, 224)
  image_bhwc = image_bchw.permute(0, 2, 3, 1).numpy()
  with torch.no_grad():
    expected_bk = theirs(image_bchw).numpy()
  with tempfile.TemporaryDirectory() as directory:
    file = pathlib.Path(directory) / f"{name}.pth"
    torch.save(theirs.state_dict(), file)
    model, variables = pretrained.load_torch(file)
    logits_bk = jax.jit(model.apply)(variables, image_bhwc)
    pretrained.save_torch(file.with_suffix(".safetensors"), model, variables)
    from safetensors.torch import load_file

    again = load_file(file.with_suffix(".safetensors"))
  before = theirs.state_dict()
  theirs.load_state_dict(again)  # strict
  same = all(torch.equal(before[key], again[key]) for key in before)
  return {
    "model": name,
    "activation": model.activation,
    "max_abs_difference": float(np.abs(logits_bk - expected_bk).max()),
    "max_abs_logit": float(np.abs(expected_bk).max()),
    "std_logit": float(expected_bk.std()),
    "round_trip": "bit-exact" if same else "differs",
  }


def main() -> None:
  """Prints one line of JSON for each model."""
  if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.append(_StandIn())
  for name in sys.argv[1:] or ["convmixer_768_32"]:
    print(json.dumps(compare(name)), flush=True)


if __name__ == "__main__":
  main()
