from dataclasses import replace
from pathlib import Path

import pytest

from weightspace.connectivity import Curve
from weightspace.errors import WeightspaceError
from weightspace.plots import draw_curves

NAIVE = Curve((0.0, 0.5, 1.0), (0.1, 1.2, 0.1), (0.98, 0.60, 0.97))
MATCHED = Curve((0.0, 0.5, 1.0), (0.1, 0.11, 0.1), (0.98, 0.98, 0.97))
BOTH = {"as trained": NAIVE, "matched": MATCHED}
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_equal_curves_give_equal_files_of_the_format_that_the_suffix_names(tmp_path: Path, suffix: str) -> None:
    first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
    for path in (first, again):
        draw_curves(BOTH, path, title="two seeds")
    assert first.read_bytes().startswith(SIGNATURES[suffix])
    assert first.read_bytes() == again.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_picture_says_what_is_on_its_axes_and_how_high_the_barriers_are(tmp_path: Path) -> None:
    draw_curves(BOTH, tmp_path / "curves.svg", title="two seeds")
    text = (tmp_path / "curves.svg").read_text()
    for words in (
        "two seeds",
        "test loss (nats)",
        "test accuracy",
        "position λ",
        "as trained: barrier 1.100 nats",
        "matched: barrier 0.010 nats",
    ):
        assert words in text


def test_curves_without_accuracies_have_one_panel(tmp_path: Path) -> None:
    draw_curves({"loss only": replace(NAIVE, accuracy=None)}, tmp_path / "one.svg")
    assert "accuracy" not in (tmp_path / "one.svg").read_text()


def test_many_curves_can_be_drawn(tmp_path: Path) -> None:
    draw_curves({f"curve {index}": NAIVE for index in range(9)}, tmp_path / "many.svg")
    assert "curve 8" in (tmp_path / "many.svg").read_text()


@pytest.mark.parametrize(
    ("curves", "name", "message"),
    [
        (BOTH, "curves.gif", r"\.png, \.svg, \.pdf file; found 'curves.gif'"),
        ({}, "curves.png", "no curves"),
        ({"two": Curve((0.0, 1.0), (1.0, 1.0))}, "curves.png", "three points"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(tmp_path, curves, name, message) -> None:
    with pytest.raises(WeightspaceError, match=message):
        draw_curves(curves, tmp_path / name)
    assert not list(tmp_path.iterdir())
