"""The predictions of a classifier on a split, and its mistakes."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The predictions for n examples of a split.

  Attributes:
    label_n: true classes, int32 [n].
    predicted_n: most probable classes, int32 [n]; the lowest one in a tie.
    probability_n: probability of the predicted class, in [0, 1], float32 [n].
    true_probability_n: probability of the true class, in [0, 1], float32 [n].
  """

  label_n: np.ndarray
  predicted_n: np.ndarray
  probability_n: np.ndarray
  true_probability_n: np.ndarray

  def accuracy(self) -> float:
    """The fraction of correct predictions."""
    return float((self.label_n == self.predicted_n).mean())

  def per_class(self, num_classes: int) -> list[float | None]:
    """The fraction of correct predictions for each class; None for one without examples."""
    matrix = self.confusion(num_classes)
    counts = matrix.sum(1).tolist()
    return [r / n if n else None for r, n in zip(matrix.diagonal().tolist(), counts, strict=True)]

  def confusion(self, num_classes: int) -> np.ndarray:
    """The confusion matrix, int [k, l]: how often class k was predicted as class l."""
    pair_n = self.label_n.astype(np.int64) * num_classes + self.predicted_n
    return np.bincount(pair_n, minlength=num_classes**2).reshape(num_classes, num_classes)

  def confused_pairs(self, count: int) -> list[tuple[int, int, int]]:
    """The `count` most frequent mistakes as (true class, predicted class, how often).

    Ties are in the order of the classes.
    """
    wrong_n = self.label_n != self.predicted_n
    pairs = np.stack([self.label_n[wrong_n], self.predicted_n[wrong_n]], 1)
    unique, times = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return [(int(unique[i, 0]), int(unique[i, 1]), int(times[i])) for i in order]

  def confidently_wrong(self, count: int) -> np.ndarray:
    """The indices of the most confident mistakes, most confident first: int [<= count]."""
    (wrong,) = np.nonzero(self.label_n != self.predicted_n)
    return wrong[np.argsort(-self.probability_n[wrong], kind="stable")][:count]
