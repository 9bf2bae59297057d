"""The examples in the docstrings (doctests), as `pytest --doctest-modules infofeat_jax` runs them too."""

import doctest
import importlib
import pathlib

import pytest

import infofeat_jax

ROOT = pathlib.Path(infofeat_jax.__file__).parent
MODULES = sorted(
    ".".join(["infofeat_jax", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if "\n    >>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed


def test_the_most_used_modules_have_examples():
    used = ("attacks.autoattack", "attacks.gradient", "cam", "data", "evaluator", "models", "objectives", "threat")
    assert {f"infofeat_jax.{name}" for name in used} <= {*MODULES}
