import numpy as np

from convmixer_jax.results.predictions import Predictions

#              right wrong wrong right wrong wrong wrong
LABEL = np.array([0, 0, 1, 2, 1, 1, 0], np.int32)
PREDICTED = np.array([0, 2, 0, 2, 0, 2, 2], np.int32)
PROBABILITY = np.array([0.9, 0.5, 0.7, 0.99, 0.6, 0.95, 0.5], np.float32)
PREDICTIONS = Predictions(LABEL, PREDICTED, PROBABILITY, PROBABILITY / 10)


def test_confusion_has_true_classes_in_rows():
  expected = np.zeros((4, 4), int)
  for label, predicted in zip(LABEL, PREDICTED, strict=True):
    expected[label, predicted] += 1
  np.testing.assert_array_equal(PREDICTIONS.confusion(4), expected)
  assert PREDICTIONS.accuracy() == 2 / 7


def test_the_most_frequent_confusions_come_first():
  assert PREDICTIONS.confused_pairs(5) == [(0, 2, 2), (1, 0, 2), (1, 2, 1)]
  assert PREDICTIONS.confused_pairs(1) == [(0, 2, 2)]


def test_the_most_confident_mistakes_come_first():
  assert PREDICTIONS.confidently_wrong(10).tolist() == [5, 2, 4, 1, 6]
  assert PREDICTIONS.confidently_wrong(2).tolist() == [5, 2]


def test_nothing_is_wrong():
  right = Predictions(LABEL, LABEL, PROBABILITY, PROBABILITY)
  assert right.confused_pairs(3) == []
  assert right.confidently_wrong(3).size == 0


def test_accuracy_by_class():
  """A class without examples has none."""
  assert PREDICTIONS.per_class(4) == [1 / 3, 0, 1, None]
