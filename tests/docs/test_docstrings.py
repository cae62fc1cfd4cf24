"""Every public name has an example, and all examples of public docstrings run."""

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from generators import reference

import weightspace as ws


def public_objects() -> Iterator[tuple[str, object]]:
    """Yield the functions and classes of ``weightspace`` and of its subpackages by their public names."""
    for name in ws.__all__:
        if name not in reference.DATA:
            yield f"weightspace.{name}", getattr(ws, name)
    for package in reference.packages():
        module = importlib.import_module(f"weightspace.{package}")
        for name in reference.further_names(package):
            yield f"weightspace.{package}.{name}", getattr(module, name)


def examples_of(name: str, value: object) -> list[doctest.DocTest]:
    """Return the examples of an object and its methods; each starts from no names but those of its module."""
    module = inspect.getmodule(value)
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(value, name, module=module) if test.examples]


OBJECTS = dict(public_objects())
WITH_EXAMPLES = {name: value for name, value in OBJECTS.items() if examples_of(name, value)}


@pytest.mark.parametrize("name", sorted(set(ws.__all__) - set(reference.DATA)))
def test_every_public_name_has_an_example_in_its_own_docstring(name: str) -> None:
    value = getattr(ws, name)
    assert any(test.name == f"weightspace.{name}" for test in examples_of(f"weightspace.{name}", value)), name


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_docstring_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for test in examples_of(name, WITH_EXAMPLES[name]):
            failed = doctest.DocTestRunner().run(test).failed
            assert not failed, capsys.readouterr().out
