import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
from sklearn.datasets import load_sample_images

from convmixer_jax.augment.jitter import color_jitter

ENHANCERS = (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color)


def test_factors_and_orders_are_torchvisions(monkeypatch):
  """With only factors 0.5 and 1.5, each image matches one of Pillow's 6 orders x 8 factors."""
  piece = load_sample_images().images[0][100:124, 200:224]
  picture = PIL.Image.fromarray(piece)
  found = set()
  for factors in itertools.product((0.5, 1.5), repeat=3):
    for order in itertools.permutations(range(3)):
      image = picture
      for i in order:
        image = ENHANCERS[i](image).enhance(factors[i])
      found.add(np.asarray(image).tobytes())
  assert len(found) > 20
  uniform = jax.random.uniform

  def extremes(key, shape, minval=0.0, maxval=1.0):
    values = uniform(key, shape)
    return values if minval == 0 else jnp.where(values < 0.5, minval, maxval)

  monkeypatch.setattr(jax.random, "uniform", extremes)
  ours = np.asarray(color_jitter(jax.random.key(0), jnp.repeat(piece[None], 200, 0), 0.5))
  kinds = {image.tobytes() for image in ours}
  assert kinds <= found
  assert len(kinds) > 15


def test_factors_span_their_range():
  grey = jnp.full((500, 4, 4, 1), 100, jnp.uint8)  # only brightness changes a flat grey image
  levels = np.asarray(color_jitter(jax.random.key(1), grey, 0.2))
  assert (levels == levels[:, :1, :1]).all()
  assert levels.min() in (80, 81)
  assert levels.max() in (119, 120)
  assert abs(levels.mean() - 99.5) < 2
