import logging

import numpy as np
import pytest

from convmixer_jax import pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.zoo import replace_head
from tests.pretrained.goldens import assert_same_bits, golden_file, load_golden


def test_load_says_what_a_source_can_be(tmp_path):
  assert_same_bits(pretrained.load(golden_file())[1], load_golden()[1])
  with pytest.raises(UserError, match=r"is not a file, .* did you mean convmixer_768_32 "):
    pretrained.load("convmixr_768_32")
  with pytest.raises(UserError, match="is a directory, but not the workdir"):
    pretrained.load(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match="is not set"):
    pretrained.load(tmp_path)


def test_another_head_is_fresh_and_all_else_is_kept(caplog):
  model, variables = load_golden()
  with caplog.at_level(logging.INFO):
    changed, found = replace_head(model, variables, 5)
  assert "dropped the head for 7 classes; the new one, for 5, is random" in caplog.text
  assert changed == model.clone(num_classes=5)
  head = found["params"].pop("head")
  assert head["kernel"].shape == (12, 5) and 0 < np.abs(head["kernel"]).max() <= 12**-0.5
  kept = {name: value for name, value in variables["params"].items() if name != "head"}
  assert_same_bits(found, {**variables, "params": kept})
  assert "head" in variables["params"]
  assert "head" not in replace_head(model, variables, 0)[1]["params"]
  assert replace_head(model, variables, 7)[1] is variables
