"""The links of all pages, and the commands that they show."""

import importlib.util
import pathlib
import re
import shlex

import pytest

from convmixer_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
KEYS = config_lib.flatten(config_lib.base())


def anchors(page):
  """The fragments of a page's headings, as hosts of Markdown make them."""
  headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
  return {
    re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
  }


def commands(page):
  """The words of each `python -m` of this project on a page, in code blocks, tables and text."""
  text = page.read_text().replace("\\\n", " ").replace("\\|", "|")
  for line in re.findall(r"python -m ((?:convmixer_jax|benchmarks)\.[^`\n]*)", text):
    yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
    if target.startswith("http"):
      continue
    path, _, fragment = target.partition("#")
    found = page.parent / path if path else page
    assert found.exists(), target
    assert not fragment or fragment in anchors(found), target


def test_every_page_is_in_the_index():
  index = (ROOT / "docs" / "README.md").read_text()
  for page in (ROOT / "docs").glob("*.md"):
    assert page.name == "README.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page):
  """Modules, configs and the keys of their settings."""
  for module, *words in commands(page):
    assert importlib.util.find_spec(module), module
    for word in words:
      key, _, value = word.removeprefix("--").partition("=")
      if key == "config" and value != "CONFIG":
        assert config_lib.path_of(str(ROOT / value) if "/" in value else value).exists(), word
      if key.startswith("config.") and "KEY" not in key:
        assert key.removeprefix("config.") in KEYS, word
      if key == "over":
        assert value.partition("=")[0] in KEYS, word
