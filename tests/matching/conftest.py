"""The zoo of tests/symmetry, and pairs of checkpoints of which one is a permuted copy of the other.

Puts this folder on the path too, which --import-mode=importlib leaves off it, for ``tiny_tasks``.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.symmetry import PermutationSpec, derive_spec

sys.path.insert(0, str(Path(__file__).parent))
_PATH = Path(__file__).parent.parent / "symmetry" / "zoo.py"
_SPEC = importlib.util.spec_from_file_location("weightspace_zoo", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_ZOO = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_ZOO)


@pytest.fixture(scope="session")
def network() -> Callable[..., tuple[nn.Module, tuple[Any, ...]]]:
    """``network(name, seed=0)``: a network of the zoo, in eval mode, and its example inputs."""
    return _ZOO.build


@pytest.fixture(scope="session")
def state() -> Callable[..., StateDict]:
    """``state(name, seed=0)``: the detached tensors of a network of the zoo."""

    def find(name: str, seed: int = 0) -> StateDict:
        built, _ = _ZOO.build(name, seed)
        return {key: tensor.detach() for key, tensor in built.state_dict().items()}

    return find


@pytest.fixture(scope="session")
def derived() -> Callable[[str], PermutationSpec]:
    """``derived(name)``: the spec of a network of the zoo (tests/symmetry verifies them), derived once."""
    return cache(lambda name: derive_spec(*_ZOO.build(name), verify=False))
