"""Small archives and images as datasets are prepared from, and what TFDS made of them."""

import json
import pathlib
import runpy

import numpy as np
import PIL.Image

GOLDEN = pathlib.Path(__file__).with_name("golden")
golden = json.loads((GOLDEN / "prepare.json").read_text())
make = runpy.run_path(str(GOLDEN / "make_prepare_golden.py"))


def write_image(path, value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(np.full((9, 8, 3), value, np.uint8)).save(path)
