"""Builds the distribution; everything but the build itself is in pyproject.toml."""

from setuptools import setup

setup()
