"""CONTRIBUTING.md names files that are there, and every method."""

import re
from pathlib import Path

from weightspace.merging import METHODS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_that_the_map_names_is_there() -> None:
    named = re.findall(r"`([a-z_/]+(?:\.py|/))`", TEXT)
    assert len(named) > 50
    homes = (
        ROOT,
        ROOT / "weightspace",
        ROOT / "weightspace" / "merging" / "out_of_core",
        ROOT / "weightspace" / "symmetry",
    )
    homes += (ROOT / "weightspace" / "merging", ROOT / "weightspace" / "merging" / "methods")
    homes += (ROOT / "tests" / "merging",)
    missing = [name for name in named if not any((home / name).exists() for home in homes)]
    assert not missing


def test_every_merge_method_is_in_the_file_of_its_name_or_in_the_map() -> None:
    for name, method in METHODS.items():
        file = method.function.partition(":")[0]
        assert file == name or f"| `{name}` | `merging/methods/{file}.py` |" in TEXT
