"""Puts this folder on the path, which --import-mode=importlib leaves off it, for ``spaces``."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def by_structure(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let trees and graphs decide by their structure, however small: never by a table of distances."""
    from spaces import SPACES

    from weightspace.labels import geometry

    def forget() -> None:
        for metric in SPACES.values():
            metric._decisions.clear()

    for name in ("_DESCENT", "_SUMMED"):
        monkeypatch.setattr(geometry, name, -math.inf)
    forget()
    yield
    forget()


@pytest.fixture(params=["by tables", "by structure"])
def either_way(request: pytest.FixtureRequest) -> str:
    """Run a test with tables of distances, where they are small, and without."""
    if request.param == "by structure":
        request.getfixturevalue("by_structure")
    return request.param
