import pytest

from convmixer_jax.data.corrupt import Damage
from convmixer_jax.errors import UserError


def test_each_example_is_named_once_and_counted(caplog):
  damage = Damage(limit=2)
  damage.note({7: "seven is torn"})
  damage.note({7: "seven is torn", 3: "three is torn"})
  messages = [record.message for record in caplog.records]
  assert messages == [
    "skipped a damaged example: seven is torn",
    "1 damaged so far; config.run.max_damaged=2 allows no more than these",
    "skipped a damaged example: three is torn",
    "2 damaged so far; config.run.max_damaged=2 allows no more than these",
  ]


def test_one_more_than_allowed_names_the_first_three():
  damage = Damage(limit=3)
  damage.note({i: f"number {i} is torn" for i in range(3)})
  with pytest.raises(UserError) as error:
    damage.note({9: "number 9 is torn"})
  assert str(error.value).startswith(
    "4 examples are damaged, config.run.max_damaged is 3: number 0 is torn; number 1 is torn; "
    "number 2 is torn; and 1 more. Mend the data"
  )
