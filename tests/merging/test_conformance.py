"""Against mergekit 0.1.5 in float32, and against the correctly rounded oracles in bfloat16.

conformance/merging/README.md says how the files were made. Recipes are resolved here by code of their own, tensor by
tensor; tests/merging/out_of_core/test_recipes.py runs the same ones from files to files.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import named_oracles
import numpy as np
import pytest
import torch
import yaml
from samples import error, half_way
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError

MANIFEST = json.loads(
    (Path(__file__).parents[1] / "data" / "conformance" / "merging" / "manifest.json").read_text(encoding="utf-8")
)
LAYERS = 4
PER_MODEL = {"density", "gamma"}


def cases(dtype: str) -> list[dict[str, Any]]:
    return [case for case in MANIFEST["cases"] if case["input_dtype"] == dtype]


@cache
def load(folder: Path) -> StateDict:
    return ws.load_checkpoint(folder)


class Recipe:
    """One of the configs, and what it says about one tensor of the output."""

    def __init__(self, folder: Path, case: Mapping[str, Any]) -> None:
        self.folder = folder
        self.recipe = yaml.safe_load((folder / case["config"]).read_text(encoding="utf-8"))
        self.method = self.recipe["merge_method"]
        self.out_dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[
            self.recipe.get("out_dtype", self.recipe["dtype"])
        ]

    def names(self) -> list[str]:
        """Return the names of the output."""
        slices = self.recipe.get("slices")
        if not slices:
            return list(self.state(self.recipe["models"][0]))
        ranges = [source["layer_range"] for part in slices for source in part["sources"]]
        count = sum(end - start for start, end in ranges)
        plain = {re.sub(r"layers\.\d+", "layers.#", name) for name in self.state(slices[0]["sources"][0])}
        return sorted({name.replace("#", str(layer)) for name in plain for layer in range(count)})

    def state(self, source: Mapping[str, Any]) -> StateDict:
        return load(self.folder / source["model"])

    def at(self, name: str) -> tuple[list[tuple[str, Mapping[str, Any]]], str, float]:
        """Return the sources of a tensor, the name that it has there, and where its layer lies between 0 and 1."""
        layer = int(found[1]) if (found := re.search(r"layers\.(\d+)", name)) else None
        if "slices" not in self.recipe:
            return [(s["model"], s) for s in self.recipe["models"]], name, (layer or 0) / (LAYERS - 1)
        parts = [part["sources"][0] for part in self.recipe["slices"]]
        if layer is None:
            source = parts[-1] if name.startswith(("model.norm", "lm_head")) else parts[0]
            return [(source["model"], source)], name, 0.0
        for source in parts:
            start, end = source["layer_range"]
            if layer < end - start:
                there = name.replace(f"layers.{int(found[1])}", f"layers.{start + layer}") if found else name
                return [(source["model"], source)], there, 0.0
            layer -= end - start
        raise AssertionError(name)

    def arguments(self, name: str) -> tuple[list[Tensor], Tensor | None, list[float], dict[str, Any]]:
        """Return models, base, weights and parameters for a tensor; the base is none of the models."""
        sources, there, position = self.at(name)
        base_path = self.recipe.get("base_model")
        sources = [(path, source) for path, source in sources if path != base_path]
        known = self.recipe.get("parameters", {})
        own = [{**known, **source.get("parameters", {})} for _, source in sources]
        keys = dict.fromkeys(key for one in own for key in one)
        found = {key: [value(one.get(key), there, position) for one in own] for key in keys}
        weights = [1.0 if weight is None else weight for weight in found.pop("weight", [None] * len(sources))]
        parameters = {key: each if key in PER_MODEL else each[0] for key, each in found.items()}
        models = [self.state({"model": path})[there] for path, _ in sources]
        base = None if base_path is None else self.state({"model": base_path})[there]
        return models, base, weights, parameters

    def merged(self, name: str) -> Tensor:
        """Return what we make of a tensor."""
        models, base, weights, parameters = self.arguments(name)
        result = ws.merge(
            [{name: model} for model in models],
            self.method,
            base=None if base is None else {name: base},
            weights=weights if any(weight != 1 for weight in weights) else None,
            parameters=parameters,
        )
        return result[name].to(self.out_dtype)

    def exact(self, name: str) -> Tensor:
        """Return what the oracle makes of it, in float64."""
        models, base, weights, parameters = self.arguments(name)
        arrays = [model.double().numpy() for model in models]
        found = named_oracles.merged(
            self.method,
            arrays,
            None if base is None else base.double().numpy(),
            weights,
            parameters,
            masks=[np.ones(array.shape, bool) for array in arrays],
        )
        return torch.as_tensor(found)


def value(given: Any, name: str, position: float) -> Any:
    """Return a parameter for one tensor: a scalar, a gradient over the layers, or the first filter that matches."""
    if isinstance(given, list) and given and isinstance(given[0], dict):
        matching = [one["value"] for one in given if one.get("filter", "*") == "*" or one["filter"] in name]
        return value(matching[0], name, position)
    if isinstance(given, list):
        return float(np.interp(position, np.linspace(0, 1, len(given)), given))
    return given


@pytest.mark.parametrize("case", cases("fp32"), ids=lambda case: case["id"])
def test_every_method_agrees_with_mergekit_in_float32(case: dict[str, Any], conformance: Path) -> None:
    folder = conformance / "merging"
    recipe = Recipe(folder, case)
    expected = ws.load_checkpoint(folder / case["expected"]) if case.get("expected") else {}
    aside = {*case["ref"]["threshold_tie_tensors"], *case["ref"]["ill_conditioned_tensors"]} if expected else set()
    assert not expected or sorted(expected) == sorted(recipe.names())
    for name in recipe.names():
        merged, exact = recipe.merged(name), recipe.exact(name)
        tolerance = 2e-6 if merged.dtype == torch.float32 else 4e-3  # one rounding of bfloat16
        if name not in aside:
            assert error(merged, exact) < tolerance, name
        if expected:
            assert merged.dtype == expected[name].dtype
            assert name in aside or error(merged, expected[name]) < tolerance, name


def cancelled(merged: Tensor, exact: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Return where base and difference cancel, and both results are the rounding of float64: a model planted as 0."""
    size = 1e-15 * torch.stack([one.double().abs() for one in inputs]).amax(dim=0)
    return (exact.abs() <= size) & (merged.double().abs() <= size)


@pytest.mark.parametrize("case", cases("bf16"), ids=lambda case: case["id"])
def test_every_method_gives_the_correctly_rounded_result_in_bfloat16(case: dict[str, Any], conformance: Path) -> None:
    recipe = Recipe(conformance / "merging", case)
    different, count = {}, 0
    for name in recipe.names():
        merged, exact = recipe.merged(name), recipe.exact(name)
        assert merged.dtype == torch.bfloat16
        models, base, _, _ = recipe.arguments(name)
        gone = cancelled(merged, exact, models if base is None else [*models, base])
        different[name] = int(((merged != exact.to(torch.bfloat16)) & ~gone & ~half_way(merged, exact)).sum())
        count += merged.numel()
    assert sum(different.values()) <= 0.001 * count, {name: number for name, number in different.items() if number}


@cache
def edge(folder: Path) -> tuple[StateDict, StateDict]:
    """Return the odd tensors, and what mergekit made of them."""
    return tuple(ws.load_checkpoint(folder / "edge" / f"{name}.safetensors") for name in ("inputs", "expected"))


def merge_edge(case: Mapping[str, Any], inputs: StateDict, *, allow_nonfinite: bool = False) -> Tensor:
    """Merge the tensors of an edge case; the base is among its models, as it is in mergekit."""
    states = [{"t": inputs[name]} for name in case["tensors"]]
    parameters = dict(case["params"])
    return ws.merge(
        states,
        case["method"],
        base=None if case["base_index"] is None else states[case["base_index"]],
        weights=parameters.pop("weight", None),
        parameters=parameters,
        allow_nonfinite=allow_nonfinite,
    )["t"]


def exact_edge(case: Mapping[str, Any], inputs: StateDict) -> Tensor:
    """Return what the oracle makes of an edge case, in float64."""
    arrays = [inputs[name].double().numpy() for name in case["tensors"]]
    parameters = dict(case["params"])
    weights = parameters.pop("weight", [1.0] * len(arrays))
    base = None if case["base_index"] is None else arrays.pop(case["base_index"])
    return torch.as_tensor(
        named_oracles.merged(case["method"], arrays, base, weights[len(weights) - len(arrays) :], parameters)
    )


def refusal(case: Mapping[str, Any], inputs: StateDict) -> str:
    """Return how the error begins to read that an edge case ends in, or "" where a result is defined."""
    tensor = case["case"].rpartition("/")[2]
    if tensor == "shape_mismatch":
        return "do not fit together"
    if tensor == "int64_diff":
        return "'t' holds torch.int64 values, which cannot be averaged"
    if (
        case["case"].startswith("linear_zero_sum")
        and inputs[case["tensors"][0]].is_floating_point()
        and tensor != "empty"
    ):
        return "sum to 0|holds NaN"
    return "'t' of .* holds NaN" if tensor == "nan" else ""


def mergekit_differs(case: Mapping[str, Any]) -> bool:
    """Return whether this library defines another result than mergekit.

    At density 0 it keeps nothing (one element here); its constants hide differences of 1e-9; squares of 1e36 overflow,
    and it rounds to bfloat16 at every step; and what it calls a filter is a row of the last dim of a convolution too.
    """
    group, _, tensor = case["case"].partition("/")
    return (
        not case["finite"]
        or group == "ties_density0"
        or (tensor == "tiny" and group in ("slerp", "model_stock", "model_stock3", "model_stock_fw"))
        or (tensor == "huge_bf16" and group in ("slerp", "task_arithmetic", "ties"))
        or (tensor in ("t3d", "conv4d") and group == "model_stock_fw")
    )


@pytest.mark.parametrize("case", MANIFEST["edge"], ids=lambda case: case["case"])
def test_odd_tensors_give_the_defined_result_or_a_clear_error(case: dict[str, Any], conformance: Path) -> None:
    inputs, expected = edge(conformance / "merging")
    if message := refusal(case, inputs):
        with pytest.raises((CheckpointError, WeightspaceError), match=message):
            merge_edge(case, inputs)
        return
    merged = merge_edge(case, inputs)
    first = inputs[case["tensors"][-1]]
    assert merged.shape == first.shape
    if not first.is_floating_point():
        assert torch.equal(merged, first)  # mergekit raises
    elif merged.numel():
        exact = exact_edge(case, inputs)
        assert close(merged, exact.to(merged.dtype))
        assert mergekit_differs(case) or close(merged, expected[case["expected_key"]])


def test_most_odd_tensors_are_compared_with_mergekit() -> None:
    compared = [case for case in MANIFEST["edge"] if "finite" in case and not mergekit_differs(case)]
    assert len(compared) > 120
    assert {case["method"] for case in compared} == {"linear", "slerp", "task_arithmetic", "ties", "model_stock"}


@pytest.mark.parametrize(
    "case",
    [c for c in MANIFEST["edge"] if c["case"].endswith("/nan") and not c["case"].startswith("linear_zero_sum")],
    ids=lambda case: case["case"],
)
def test_nan_comes_out_as_nan_where_it_is_allowed(case: dict[str, Any], conformance: Path) -> None:
    inputs, _ = edge(conformance / "merging")
    assert merge_edge(case, inputs, allow_nonfinite=True).isnan().any()


def close(found: Tensor, expected: Tensor) -> bool:
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8, torch.float16: 2**-10}[
        expected.dtype
    ]
    return found.dtype == expected.dtype and error(found, expected) <= tolerance


def test_the_committed_copy_of_the_conformance_cases_is_complete(conformance: Path) -> None:
    committed = Path(__file__).parents[1] / "data" / "conformance"
    for family in ("labels", "merging"):
        manifest = (committed / family / "manifest.json").read_bytes()
        assert manifest
        assert manifest == (conformance / family / "manifest.json").read_bytes()
    folder = committed / "merging"
    for case in MANIFEST["cases"]:
        assert (folder / case["config"]).is_file(), case["id"]
        if case["input_dtype"] == "fp32" and case.get("expected"):
            assert (folder / case["expected"]).is_file(), case["id"]
        recipe = yaml.safe_load((folder / case["config"]).read_text(encoding="utf-8"))
        sources = recipe.get("models") or [source for part in recipe["slices"] for source in part["sources"]]
        for path in {source["model"] for source in sources} | {recipe.get("base_model", sources[0]["model"])}:
            assert (folder / path / "model.safetensors").is_file(), case["id"]
    inputs, expected = edge(folder)
    for case in MANIFEST["edge"]:
        assert inputs.keys() >= set(case["tensors"]), case["case"]
        assert "expected_key" not in case or case["expected_key"] in expected, case["case"]
