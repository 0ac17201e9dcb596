"""ConvMixer in a training loop of your own: Flax, optax and one augmentation, without configs.

Command:   python examples/train_loop.py
Reaches:   97 % of the last 360 of scikit-learn's digits in half a minute on 2 CPU cores.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets

from convmixer_jax import ConvMixer
from convmixer_jax.augment import Augmentation, normalize

EPOCHS, BATCH = 10, 64
MEAN, STD = (0.3053,), (0.3761,)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
  """1,797 images, uint8 [n, 8, 8, 1], and their labels, int32 [n]."""
  digits = sklearn.datasets.load_digits()
  image_nhwc = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
  return image_nhwc, digits.target.astype(np.int32)


def main() -> float:
  """Trains, and returns the accuracy on the last 360 digits."""
  image, label = load_digits()
  (train_image, test_image), (train_label, test_label) = (
    np.split(a, [-360]) for a in (image, label)
  )
  steps = EPOCHS * (len(train_image) // BATCH)

  model = ConvMixer(dim=64, depth=4, kernel_size=5, patch_size=1, num_classes=10)
  augmentation = Augmentation(mean=MEAN, std=STD, num_classes=10, crop_padding=1, flip=False)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_onecycle_schedule(steps, 0.01), weight_decay=0.01),
  )
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  params, batch_stats = variables["params"], variables["batch_stats"]
  opt_state = optimizer.init(params)

  @jax.jit
  def train_step(params, batch_stats, opt_state, key, image_bhwc, label_b):
    image_bhwc, target_bk = augmentation(key, image_bhwc, label_b)

    def loss_fn(params):
      logits_bk, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        image_bhwc,
        train=True,
        mutable=["batch_stats"],
      )
      loss = optax.softmax_cross_entropy(logits_bk, target_bk).mean()
      return loss, updated["batch_stats"]

    (loss, new_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), new_stats, opt_state, loss

  rng, key = np.random.default_rng(0), jax.random.key(1)
  for epoch in range(EPOCHS):
    order = rng.permutation(len(train_image))
    for rows in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
      key, step_key = jax.random.split(key)
      params, batch_stats, opt_state, loss = train_step(
        params, batch_stats, opt_state, step_key, train_image[rows], train_label[rows]
      )
    print(f"epoch {epoch + 1}: loss {loss:.4f}")

  logits_bk = model.apply(
    {"params": params, "batch_stats": batch_stats}, normalize(test_image, MEAN, STD)
  )
  accuracy = float((logits_bk.argmax(-1) == test_label).mean())
  print(f"accuracy {accuracy:.4f}")
  return accuracy


if __name__ == "__main__":
  main()
