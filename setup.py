"""For tools that look for a setup.py; the project's metadata are in pyproject.toml."""

from setuptools import setup

setup()
