"""The settings of a run: what they are (`keys`), and how they are checked, read, set and saved.

A file in `configs/` starts from `base()` and sets the keys of its recipe.
"""

from convmixer_jax.config.checks import batch_unit, validate
from convmixer_jax.config.files import names, path_of, read
from convmixer_jax.config.keys import base, flatten, types
from convmixer_jax.config.overrides import override
from convmixer_jax.config.saved import (
  FREE_SECTIONS,
  check_resumable,
  read_json,
  to_json,
  write_json,
)

__all__ = [
  "FREE_SECTIONS",
  "base",
  "batch_unit",
  "check_resumable",
  "flatten",
  "names",
  "override",
  "path_of",
  "read",
  "read_json",
  "to_json",
  "types",
  "validate",
  "write_json",
]
