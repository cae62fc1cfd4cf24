"""Headers of tables of labels that are skipped."""

from pathlib import Path

import pytest

from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.labels.headers import warn_skipped
from weightspace.labels.inputs import read_array


def test_a_skipped_header_is_shown_without_control_characters() -> None:
    with pytest.warns(WeightspaceWarning, match=r"looks like a header \(a\\x00\\x1b\[31m\)"):
        warn_skipped("x.csv", "a\x00\x1b[31m")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0.1.2,--", "line 1 is neither numbers nor names: found '0.1.2'; --header skips it"),
        ("a\x1b[31m,b", r"line 1 is neither numbers nor names: found 'a\x1b[31m'; --header skips it"),
        ("a,b,c", "lines 1 and 2 differ in their number of cells: 3 and 2"),
        ("a", "lines 1 and 2 differ in their number of cells: 1 and 2"),
    ],
)
def test_a_damaged_first_line_is_not_skipped_as_a_header(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f"{line}\n0.5,0.5\n0.1,0.9\n")
    with pytest.raises(WeightspaceError) as refused:
        read_array(path)
    assert str(refused.value) == f"{path} isn't a .csv file of numbers: {reason}."
    assert read_array(path, header=True).shape == (2, 2)
