"""Some 1,500 damaged files of every kind: each is read, or refused in one short line, at once, and nothing is written.

The same files each time. ``long_run.py`` beside this file does it with any number of them.
"""

import math
from pathlib import Path

import pytest
from cases import KINDS_OF_FILES
from readers import FuzzError
from target import Target

FILES = 1_500
SEED = 15

#: Kinds that are copied as they are, so that none is refused.
ANYTHING = ("merges", "generation config")
_SHARES = sum(kind.share for kind in KINDS_OF_FILES.values())


@pytest.mark.parametrize("name", KINDS_OF_FILES)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    target = Target(name, tmp_path / "work")
    outcome = target.run(target.content)
    assert outcome.result == "read", outcome.message


@pytest.mark.parametrize("name", KINDS_OF_FILES)
def test_a_damaged_file_is_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    target = Target(name, tmp_path / "work")
    results = set()
    for number in range(math.ceil(FILES * KINDS_OF_FILES[name].share / _SHARES)):
        content = target.damaged(number, SEED)
        try:
            results.add(target.run(content).result)
        except FuzzError as error:
            pytest.fail(f"file {number} of {name!r}, seed {SEED}: {error} ({content[:200]!r})")
    assert "refused" in results or name in ANYTHING
