import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.model.layers import mix_channels

X = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3), jnp.float32)


def _products(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return mix_channels(x, kernel, "cbp")


def _gradients(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jax.grad(lambda *args: jnp.square(_products(*args)).sum(), (0, 1))(x, kernel)


def _layouts(function, platform: str) -> list[str]:
  """The dimensions of the results with a given layout, innermost first."""
  text = jax.jit(function).trace(X, KERNEL).lower(lowering_platforms=(platform,)).as_text()
  return re.findall(r"@LayoutConstraint.*result_layouts = \[dense<\[(.*?)\]>", text)


@pytest.mark.parametrize(("function", "products"), [(_products, 1), (_gradients, 2)])
def test_tpus_store_the_feature_maps_of_products_by_image(function, products):
  assert _layouts(function, "tpu") == ["2, 0, 1"] * products
  assert _layouts(function, "cpu") == _layouts(function, "cuda") == []


def test_an_export_for_tpus_has_no_layout():
  exported = jax.export.export(jax.jit(_products), platforms=["tpu"])(X, KERNEL)
  assert "LayoutConstraint" not in exported.mlir_module()


def test_vmap_maps_the_product():
  x, kernel = (
    jax.random.normal(jax.random.key(n), (2, *a.shape)) for n, a in enumerate([X, KERNEL])
  )
  expected = np.einsum("ncf,ncbp->nfbp", kernel, x)
  np.testing.assert_allclose(jax.vmap(_products)(x, kernel), expected, rtol=1e-5, atol=1e-5)
