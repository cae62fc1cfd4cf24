"""Headers of tables of labels that are skipped."""

import pytest

from weightspace.errors import WeightspaceWarning
from weightspace.labels.headers import warn_skipped


def test_a_skipped_header_is_shown_without_control_characters() -> None:
    with pytest.warns(WeightspaceWarning, match=r"looks like a header \(a\\x00\\x1b\[31m\)"):
        warn_skipped("x.csv", "a\x00\x1b[31m")
