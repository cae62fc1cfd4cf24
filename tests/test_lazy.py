"""``import weightspace`` costs no torch, and its subpackages need no import of their own."""

import subprocess
import sys

import pytest

PACKAGES = ("checkpoints", "connectivity", "labels", "lora", "matching", "merging", "plots", "soups", "spectra")

CODE = """
import sys
import weightspace as ws
assert "torch" not in sys.modules
for name in {packages}:
    assert getattr(ws, name).__name__ == f"weightspace.{{name}}"
for name in ("nonsense", "_private", "no.such"):
    assert not hasattr(ws, name)
assert callable(ws.barrier) and callable(ws.zoo.load_task) and callable(ws.tasks.train)
"""


def test_subpackages_are_attributes_from_the_start() -> None:
    code = CODE.format(packages=PACKAGES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_name_is_an_attribute_error() -> None:
    import weightspace as ws

    with pytest.raises(AttributeError, match="no attribute 'labls'"):
        ws.labls  # noqa: B018
