"""How near the arrays of two trees have to be."""

import jax
import numpy as np


def assert_close(a, b, tolerance):
  """Two trees of one structure, each array within `tolerance`, relative and absolute."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
    )
