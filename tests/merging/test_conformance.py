"""Linear merges against the output of mergekit 0.1.5 (conformance/merging/README.md says how it was made)."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import weightspace as ws


@pytest.mark.parametrize("case", ["linear_2.fp32", "linear_nonorm_neg.fp32"])
def test_linear_agrees_with_mergekit_in_float32(case: str, conformance: Path) -> None:
    folder = conformance / "merging"
    recipe = yaml.safe_load((folder / "configs" / f"{case}.yml").read_text())
    states = [ws.load_checkpoint(folder / model["model"]) for model in recipe["models"]]
    weights = [model["parameters"]["weight"] for model in recipe["models"]]
    merged = ws.merge(states, recipe["merge_method"], weights=weights, parameters=recipe.get("parameters"))
    expected = ws.load_checkpoint(folder / "expected" / f"{case}.safetensors")
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (merged[name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-30)
        assert error < 2e-6, name
        assert merged[name].dtype == torch.float32


def test_odd_tensors_come_out_as_in_mergekit(conformance: Path) -> None:
    folder = conformance / "merging"
    inputs = ws.load_checkpoint(folder / "edge" / "inputs.safetensors")
    expected = ws.load_checkpoint(folder / "edge" / "expected.safetensors")
    compared = 0
    for case in json.loads((folder / "manifest.json").read_text())["edge"]:
        if case["method"] != "linear" or not case.get("finite") or sum(case["params"]["weight"]) == 0:
            continue
        states = [{"t": inputs[name]} for name in case["tensors"]]
        merged = ws.merge(states, weights=case["params"]["weight"])["t"]
        # The peer computes in the storage dtype; one rounding of that dtype is all that may lie between.
        tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}.get(merged.dtype, 2e-2)
        target = expected[case["expected_key"]]
        assert torch.allclose(merged.double(), target.double(), rtol=tolerance, atol=1e-6), case["case"]
        compared += 1
    assert compared > 10


def test_the_committed_copy_of_the_conformance_cases_is_complete(conformance: Path) -> None:
    for family in ("labels", "merging"):
        manifest = json.loads((conformance / family / "manifest.json").read_text())
        assert manifest, family
    cases = json.loads((conformance / "merging" / "manifest.json").read_text())["cases"]
    for case in cases:
        if case["input_dtype"] == "fp32" and case.get("expected"):
            assert (conformance / "merging" / case["config"]).is_file(), case["id"]
            assert (conformance / "merging" / case["expected"]).is_file(), case["id"]
