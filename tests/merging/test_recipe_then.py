"""Steps after a merge are the documents that one could write by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.parse import parse_recipe

MERGE: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base.safetensors",
    "models": [{"model": f"{name}.safetensors", "parameters": {"weight": 1.0}} for name in "ab"],
    "parameters": {"density": 0.4},
}
BOOST: dict[str, Any] = {"merge_method": "subspace_boosting", "parameters": {"beta": 0.3}}
SVC: dict[str, Any] = {"merge_method": "svc", "parameters": {"alpha": 0.5}}
LINES: dict[str, Any] = {"merge_method": "lines", "parameters": {"alpha": 0.25, "beta": 0.5}}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{layer}.weight": torch.randn(6, 8, generator=generator) for layer in range(3)}
        ws.save_checkpoint({**state, "norm": torch.randn(8, generator=generator)}, f"{name}.safetensors")


@pytest.mark.usefixtures("models")
def test_steps_are_documents() -> None:
    by_hand = [
        {**MERGE, "name": "merged"},
        {**BOOST, "name": "boosted", "base_model": "base.safetensors", "models": [{"model": "merged"}]},
        {**LINES, "base_model": "base.safetensors", "models": [{"model": "boosted"}], "dtype": "bfloat16"},
    ]
    Path("long.yml").write_text(yaml.safe_dump_all(by_hand))
    Path("short.yml").write_text(yaml.safe_dump({**MERGE, "dtype": "bfloat16", "then": [BOOST, LINES]}))
    for name in ("long", "short"):
        ws.merge_files(f"{name}.yml", f"{name}.safetensors")
    found, expected = (ws.load_checkpoint(f"{name}.safetensors") for name in ("short", "long"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found["norm"].dtype == torch.bfloat16


@pytest.mark.usefixtures("models")
def test_a_merge_with_steps_is_a_model_of_other_documents() -> None:
    first = {**MERGE, "name": "boosted", "then": [BOOST]}
    last = {"merge_method": "slerp", "base_model": "base.safetensors", "models": [{"model": "boosted"}]}
    Path("recipe.yml").write_text(yaml.safe_dump_all([first, {**last, "parameters": {"t": 1.0}}]))
    Path("alone.yml").write_text(yaml.safe_dump({**MERGE, "then": [BOOST]}))
    for name in ("recipe", "alone"):
        ws.merge_files(f"{name}.yml", f"{name}.safetensors")
    found, expected = (ws.load_checkpoint(f"{name}.safetensors") for name in ("recipe", "alone"))
    assert all(torch.allclose(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("models")
def test_a_step_that_compares_the_merge_with_its_models_gets_them() -> None:
    recipe = {**MERGE, "models": [*MERGE["models"], {"model": "base.safetensors"}], "then": [BOOST, SVC]}
    Path("recipe.yml").write_text(yaml.safe_dump(recipe))
    ws.merge_files("recipe.yml", "found.safetensors")
    base, a, b = (ws.load_checkpoint(f"{name}.safetensors") for name in ("base", "a", "b"))
    merged = ws.merge([a, b], "ties", base=base, weights=[1.0, 1.0], parameters={"density": 0.4})
    boosted = ws.merge([merged], "subspace_boosting", base=base, parameters={"beta": 0.3})
    expected = ws.merge([boosted, a, b], "svc", base=base, parameters={"alpha": 0.5})
    found = ws.load_checkpoint("found.safetensors")
    assert all(torch.allclose(found[name], tensor, atol=1e-5) for name, tensor in expected.items())
    assert not torch.allclose(found["layers.0.weight"], boosted["layers.0.weight"], atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"then": []}, "then must be a list of steps"),
        ({"then": BOOST}, "then must be a list of steps"),
        ({"then": ["lines"]}, "then must be a list of steps"),
        ({"then": [{"merge_method": "lines"}]}, "step 1 of then is lines with neither alpha nor beta"),
        (
            {"then": [SVC, {"merge_method": "lines", "parameters": {"alpha": None}}]},
            "step 2 of then is lines with neither",
        ),
        ({"then": [{"merge_method": "lines", "parameters": [1]}]}, "step 1 of then is lines with neither"),
        ({"then": [{**BOOST, "models": []}]}, "step 1 of then has the key 'models'"),
        ({"then": [BOOST], "base_model": None}, "Give a base_model"),
        ({"then": [BOOST], "tokenizer_source": "union"}, "cannot be combined with tokenizer_source"),
        ({"then": [{"merge_method": "boost"}]}, "'boost'"),
        ({"then": [{"parameters": {}}]}, "merge_method is missing"),
        ({"then": [SVC], "models": None, "slices": []}, "the step svc of then compares the merge with its models"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        parse_recipe(yaml.safe_dump({**MERGE, **change}), "recipe.yml")
