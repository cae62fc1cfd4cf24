"""The scripts of analyses/ import each other as neighbours; for their tests they are put in reach by name."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ANALYSES = Path(__file__).parents[2] / "analyses"


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports a script by its name.

    Afterwards no script is in reach any more: one has the name of a package, transformers.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ANALYSES)
        yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == ANALYSES:
            del sys.modules[name]
