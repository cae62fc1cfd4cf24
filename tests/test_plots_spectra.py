"""Pictures of singular values and vectors: equal data give equal files, which say what is on their axes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightspace.errors import WeightspaceError
from weightspace.plots import draw_alignment, draw_heat_maps, draw_spectra
from weightspace.spectra import Spectrum, alignments, cross_products, spectrum


def network(seed: int, layers: int = 2) -> Spectrum:
    generator = torch.Generator().manual_seed(seed)
    return spectrum({f"layer{index}.weight": torch.randn(6, 40, generator=generator) for index in range(layers)})


A, B = network(0), network(1)
CURVE = alignments(A, B, [0, 0.5, 1])
MAPS = {name: {"before": cross_products(A.layers[name], B.layers[name])} for name in A.layers}
PICTURES: dict[str, tuple[Callable[..., None], Any, list[str]]] = {
    "alignment": (
        draw_alignment,
        {"as trained": CURVE, "matched": CURVE},
        ["as trained", "matched", "alignment R"],
    ),
    "heat maps": (draw_heat_maps, MAPS, ["layer0.weight", "before", "vector i of A", "vector j of B"]),
    "spectra": (draw_spectra, {"one": A, "two": B}, ["layer1.weight", "one", "two", "singular value σ", "rank i"]),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_equal_data_give_equal_pictures_that_say_what_they_show(kind: str, tmp_path: Path) -> None:
    draw, data, words = PICTURES[kind]
    for name in ("first.svg", "again.svg", "picture.png"):
        draw(data, tmp_path / name, title="two seeds")
    text = (tmp_path / "first.svg").read_text()
    assert text == (tmp_path / "again.svg").read_text()
    for word in [*words, "two seeds"]:
        assert word in text
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_one_layer_and_many_can_be_drawn(tmp_path: Path) -> None:
    for layers in (1, 9):
        one = network(0, layers)
        maps = {name: {"self": cross_products(layer, layer)} for name, layer in one.layers.items()}
        draw_spectra({"A": one}, tmp_path / f"values{layers}.svg", gamma=0.3)
        draw_heat_maps(maps, tmp_path / f"vectors{layers}.svg", leading=3)
        for kind in ("values", "vectors"):
            assert f"layer{layers - 1}.weight" in (tmp_path / f"{kind}{layers}.svg").read_text()


def test_a_zero_matrix_has_an_empty_heat_map(tmp_path: Path) -> None:
    zero = spectrum({"weight": torch.zeros(3, 3)}).layers["weight"]
    draw_heat_maps({"weight": {"before": cross_products(zero, zero)}}, tmp_path / "zero.svg")
    assert (tmp_path / "zero.svg").stat().st_size


@pytest.mark.parametrize(
    ("draw", "data", "name", "message"),
    [
        (draw_alignment, {}, "a.png", "no alignments"),
        (draw_alignment, {"empty": ()}, "a.png", "no alignments"),
        (draw_alignment, {"one": CURVE}, "a.gif", r"found 'a\.gif'"),
        (draw_heat_maps, {}, "a.png", "no heat maps"),
        (draw_heat_maps, {**MAPS, "other": {}}, "a.png", "'other' has heat maps of nothing; expected before"),
        (draw_spectra, {}, "a.png", "no spectra"),
        (draw_spectra, {"A": A, "B": network(0, 3)}, "a.png", "layers of 'B' differ from those of 'A'"),
    ],
)
def test_invalid_spectra_are_refused(draw: Any, data: Any, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=message):
        draw(data, tmp_path / name)
    assert not list(tmp_path.iterdir())
