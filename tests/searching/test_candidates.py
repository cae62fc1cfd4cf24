"""Candidates are made in memory with the bits of a merge to files, and share tensors that do not change."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import weightspace as ws
from weightspace.searching.candidates import Candidate


def recipe(method: str, parameters: dict[str, Any], *, base: bool = True) -> str:
    content: dict[str, Any] = {"merge_method": method, "parameters": parameters}
    own = {} if method == "tsv_m" else {"parameters": {"weight": 0.7}}
    content["models"] = [{"model": f"{name}.safetensors", **own} for name in "ab"]
    return yaml.safe_dump({**content, **({"base_model": "base.safetensors"} if base else {})})


def same(found: ws.StateDict, expected: ws.StateDict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("task_arithmetic", {"lambda": 0.4}),
        ("ties", {"density": 0.5}),
        ("ties", {"density": 0.5, "scope": "model"}),
        ("dare_ties", {"density": 0.5}),
        ("della", {"density": 0.5, "epsilon": 0.1}),
        ("tsv_m", {}),
        ("model_stock", {}),
    ],
    ids=str,
)
def test_candidates_have_the_bits_of_merge_files(method: str, parameters: dict[str, Any], tiny: Path) -> None:
    text = recipe(method, parameters, base=method != "linear")
    Path("recipe.yml").write_text(text)
    ws.merge_files("recipe.yml", "merged.safetensors")
    assert same(Candidate(text, "recipe").state(), ws.load_checkpoint("merged.safetensors"))


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_parametrized_networks_too(norm: Any, tiny: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        ws.save_checkpoint(norm(nn.Linear(6, 4)).state_dict(), f"{name}.safetensors")
    text = recipe("task_arithmetic", {"lambda": 0.4})
    Path("recipe.yml").write_text(text)
    ws.merge_files("recipe.yml", "merged.safetensors")
    assert same(Candidate(text, "recipe").state(), ws.load_checkpoint("merged.safetensors"))


def test_recipes_of_several_documents_too(tiny: Path) -> None:
    first = {**yaml.safe_load(recipe("linear", {}, base=False)), "name": "mean"}
    second = {"merge_method": "slerp", "base_model": "base.safetensors", "models": [{"model": "mean"}]}
    text = yaml.safe_dump_all([first, {**second, "parameters": {"t": 0.25}}])
    Path("recipe.yml").write_text(text)
    ws.merge_files("recipe.yml", "merged.safetensors")
    candidate = Candidate(text, "recipe")
    assert same(candidate.state(), ws.load_checkpoint("merged.safetensors"))
    assert sorted(candidate.files()) == ["a.safetensors", "b.safetensors", "base.safetensors"]


def test_tensors_that_do_not_change_are_kept(tiny: Path) -> None:
    def states(t: float) -> ws.StateDict:
        return Candidate(
            recipe("task_arithmetic", {"lambda": [{"filter": "w", "value": t}, {"value": 1}]}), "r"
        ).state()

    first, second = states(0.2), states(0.3)
    assert first["v"] is second["v"]
    assert not torch.equal(first["w"], second["w"])
    changed = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    ws.save_checkpoint(changed, "a.safetensors")
    assert not torch.equal(states(0.3)["v"], second["v"])
