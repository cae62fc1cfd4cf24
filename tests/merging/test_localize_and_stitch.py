"""Localize-and-Stitch: regions of the whole model, averages where they overlap, and exact rounding."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import exact_oracles as exact
import pytest
import torch
from exact_data import tensors
from samples import assert_same_bits, normals, same_bits

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.merging import merge, merge_files


def stitched(models: list[StateDict], base: StateDict, **options: Any) -> StateDict:
    weights = options.pop("weights", None)
    return merge(models, "localize_and_stitch", base=base, weights=weights, parameters=options)


def test_overlaps_are_averaged_whatever_their_signs_and_the_rest_is_the_base() -> None:
    first, second = [9.0, 4.0, 1.0, 0.5], [-3.0, 1.0, 8.0, 0.5]
    models = [{"w": torch.tensor(vector)} for vector in (first, second)]
    found = stitched(models, {"w": torch.zeros(4)}, density=0.5)
    assert found["w"].tolist() == [3, 4, 8, 0]
    weighted = stitched(models, {"w": torch.zeros(4)}, density=0.5, weights=[2.0, 1.0], **{"lambda": 0.5})
    assert weighted["w"].tolist() == [2.5, 2, 4, 0]


def test_differences_of_zero_belong_to_no_region() -> None:
    models = [{"w": torch.tensor(vector)} for vector in ([4.0, 0.0], [2.0, 6.0])]
    assert stitched(models, {"w": torch.zeros(2)}, density=1.0)["w"].tolist() == [3, 6]


def test_regions_are_of_the_whole_model_from_memory_and_from_files(tmp_path: Path) -> None:
    """The differences of one tensor are far larger, so that all of the region is in it."""
    base = {"large": normals(0, (8, 5)), "small": normals(1, (8, 5))}
    changes = [{"large": 10 * normals(seed, (8, 5)), "small": normals(seed, (8, 5)) / 100} for seed in (2, 3)]
    models = [{name: base[name] + change[name] for name in base} for change in changes]
    found = stitched(models, base, density=0.3)
    assert same_bits(found["small"], base["small"])
    assert int((found["large"] != base["large"]).sum()) >= 24
    for name, state in {"base": base, "a": models[0], "b": models[1]}.items():
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    merge_files(
        [tmp_path / "a.safetensors", tmp_path / "b.safetensors"],
        tmp_path / "out.safetensors",
        method="localize_and_stitch",
        base=tmp_path / "base.safetensors",
        parameters={"density": 0.3},
    )
    assert_same_bits(ws.load_checkpoint(tmp_path / "out.safetensors"), found)


@pytest.mark.parametrize("kind", ["fine_tunes", "cancelling"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.6, 0.3, 0.1]], ids=str)
def test_it_is_the_exact_mean_rounded_once(weights: list[float], kind: str) -> None:
    *models, base = tensors(kind, 4, torch.bfloat16, 2000)
    found = stitched([{"w": model} for model in models], {"w": base}, density=0.5, weights=weights)["w"]
    origin = exact.fractions(base)
    deltas = [[x - b for x, b in zip(exact.fractions(model), origin, strict=True)] for model in models]
    kept = [exact.kept(each, 0.5) for each in deltas]
    shares = [Fraction(weight) for weight in weights]
    expected = []
    for place, value in enumerate(origin):
        own = [i for i in range(3) if kept[i][place] and deltas[i][place]]
        divisor = sum((shares[i] for i in own), Fraction(0)) or Fraction(1)
        expected.append(value + sum((shares[i] * deltas[i][place] for i in own), Fraction(0)) / divisor)
    assert exact.share_right(found, expected) >= 0.999
