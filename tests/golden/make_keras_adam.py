"""Makes keras_adam.npz: ten steps of Keras's Adam and of TensorFlow Addons' AdamW.

To make the file anew, from the project's root and in an environment of its own:

  pip install "tensorflow==2.14.*" "tensorflow-addons==0.22.*"
  python tests/golden/make_keras_adam.py

The sizes of the gradients go from 1e-9 to 1, so that Adam's epsilon of 1e-7 counts for some of
them. Three runs: "adam" with Keras's defaults, "example" with the settings of Keras's example, and
"study" with those of the Cooper Union study, whose callback sets the learning rate.
"""

import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

PARAMETERS, EPOCHS, STEPS_PER_EPOCH, PEAK = 48, 5, 2, 0.01
KEPT = (1, 2, 3, 10)


def study_rate(step: int) -> float:
  """Learning rate of update `step`, from 0, as the study's OneCycleLRScheduler has it."""
  epoch, batch = divmod(step, STEPS_PER_EPOCH)
  t = epoch + 1 + (batch + 1) / STEPS_PER_EPOCH
  knots = [0, EPOCHS * 2 // 5, EPOCHS * 4 // 5, EPOCHS]
  return float(np.interp(t, knots, [0, PEAK, PEAK / 20.0, 0]))


def main() -> None:
  """The gradients, and each run's parameters after the steps `KEPT`."""
  rng = np.random.RandomState(0)
  sizes = np.logspace(-9, 0, PARAMETERS)
  gradients = (sizes * rng.normal(size=(EPOCHS * STEPS_PER_EPOCH, PARAMETERS))).astype("float32")
  before = (0.01 * rng.normal(size=PARAMETERS)).astype("float32")
  runs = {
    "adam": tf.keras.optimizers.legacy.Adam(1e-3, epsilon=1e-7),
    "example": tfa.optimizers.AdamW(learning_rate=1e-3, weight_decay=1e-4),
    "study": tfa.optimizers.AdamW(weight_decay=0),
  }
  arrays = {"gradients": gradients, "before": before, "steps": np.array(KEPT)}
  for name, optimizer in runs.items():
    variable = tf.Variable(before)
    after = []
    for step, gradient in enumerate(gradients):
      if name == "study":
        tf.keras.backend.set_value(optimizer.lr, study_rate(step))
      optimizer.apply_gradients([(tf.constant(gradient), variable)])
      after.append(variable.numpy())
    arrays[name] = np.stack([after[step - 1] for step in KEPT])
  path = pathlib.Path(__file__).with_name("keras_adam.npz")
  np.savez_compressed(path, **arrays)
  print(f"wrote {path}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
