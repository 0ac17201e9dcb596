import numpy as np
import pytest

from convmixer_jax.training.metrics import NonFiniteError, averages, check_finite, sums

LOGITS = np.float32([[0, 1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4, 3], [1, 0, 0, 0, 0, 0, 2]])


def one_hot(label):
  return np.eye(7, dtype=np.float32)[label]


def test_sums_leave_masked_examples_out():
  label, mask = np.int32([6, 4, 0]), np.float32([1, 1, 0])
  found = averages({name: float(x) for name, x in sums(LOGITS, one_hot(label), mask).items()})
  log_total = np.log(np.exp(LOGITS.astype(np.float64)).sum(1))
  losses = log_total - LOGITS[np.arange(3), label]
  np.testing.assert_allclose(found["loss"], losses[:2].mean(), rtol=1e-6)
  assert found["accuracy"] == 0.5  # only the first
  assert found["top5_accuracy"] == 1.0  # class 4 has rank 5 in the second
  assert float(sums(LOGITS, one_hot(label), mask)["count"]) == 2


def test_the_loss_of_mixed_labels_is_the_mixed_loss():
  a, b = one_hot([6, 4, 0]), one_hot([1, 2, 3])
  ones = np.ones(3, np.float32)
  of_a, of_b, mixed = (float(sums(LOGITS, t, ones)["loss"]) for t in (a, b, 0.7 * a + 0.3 * b))
  np.testing.assert_allclose(mixed, 0.7 * of_a + 0.3 * of_b, rtol=1e-6)
  accuracies = [float(sums(LOGITS, t, ones)["accuracy"]) for t in (a, 0.7 * a + 0.3 * b)]
  assert accuracies[0] == accuracies[1] == 1  # the label is the argmax of the target


@pytest.mark.parametrize(("label", "is_in_top5"), [(0, 1.0), (4, 1.0), (5, 0.0), (6, 0.0)])
def test_top5(label, is_in_top5):
  found = sums(LOGITS[1:2], one_hot([label]), np.ones(1, np.float32))
  assert float(found["top5_accuracy"]) == is_in_top5


def test_no_top5_for_five_classes():
  found = sums(LOGITS[:, :5], one_hot([0, 0, 0])[:, :5], np.ones(3, np.float32))
  assert set(found) == {"loss", "accuracy", "count"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_variables_that_are_not_finite_are_noticed(bad):
  variables = {"params": {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}}
  check_finite(7, variables)
  variables["params"]["a"][1, 2] = bad
  with pytest.raises(NonFiniteError, match="step 7: a parameter or a running statistic is not"):
    check_finite(7, variables)
