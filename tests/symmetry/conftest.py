"""The zoo as fixtures, for this folder and (through its conftest) for tests/matching."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from weightspace.symmetry import PermutationSpec, derive_spec


def load_zoo() -> ModuleType:
    """Import zoo.py, which --import-mode=importlib leaves off the path."""
    spec = importlib.util.spec_from_file_location("weightspace_zoo", Path(__file__).with_name("zoo.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_ZOO = load_zoo()


@pytest.fixture(scope="session")
def network() -> Callable[..., tuple[nn.Module, tuple[Any, ...]]]:
    """``network(name, seed=0)``: a network of the zoo, in eval mode, and its example inputs."""
    return _ZOO.build


@pytest.fixture(scope="session")
def derived() -> Callable[[str], PermutationSpec]:
    """``derived(name)``: the verified spec of a small network of the zoo, derived once."""
    return cache(lambda name: derive_spec(*_ZOO.build(name)))
