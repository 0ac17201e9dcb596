import pytest

from convmixer_jax.data.corrupt import CorruptExamples
from convmixer_jax.errors import UserError


def test_each_example_is_named_once_and_counted(caplog):
  corrupt_examples = CorruptExamples(limit=2)
  corrupt_examples.note({7: "seven is torn"})
  corrupt_examples.note({7: "seven is torn", 3: "three is torn"})
  messages = [record.message for record in caplog.records]
  assert messages == [
    "skipped a corrupt example: seven is torn",
    "corrupt examples so far: 1 (limit: config.run.max_corrupt=2)",
    "skipped a corrupt example: three is torn",
    "corrupt examples so far: 2 (limit: config.run.max_corrupt=2)",
  ]


def test_one_more_than_allowed_names_the_first_three():
  corrupt_examples = CorruptExamples(limit=3)
  corrupt_examples.note({i: f"number {i} is torn" for i in range(3)})
  with pytest.raises(UserError) as error:
    corrupt_examples.note({9: "number 9 is torn"})
  assert str(error.value).startswith(
    "4 examples are corrupt, config.run.max_corrupt is 3: number 0 is torn; number 1 is torn; "
    "number 2 is torn; and 1 more. Repair the data"
  )
