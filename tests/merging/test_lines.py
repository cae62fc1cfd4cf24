"""LiNeS: the factor of a tensor follows from the depth of its layer in the merged network."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import exact_oracles as exact
import named_oracles
import pytest
import torch
import yaml
from samples import assert_same_bits, normals, same_bits

import weightspace as ws
from weightspace.checkpoints import StateDict

LAYERS = [f"model.layers.{number}.mlp.weight" for number in range(4)]
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def network(seed: int, dtype: torch.dtype = torch.float32) -> StateDict:
    names = [OUTSIDE[0], *LAYERS, *OUTSIDE[1:]]
    return {name: normals(100 * seed + place, (6, 5), dtype) for place, name in enumerate(names)}


def constant(value: float, layers: int = 4) -> StateDict:
    return {name: torch.full((2, 2), value, dtype=torch.float64) for name in [*OUTSIDE, *LAYERS[:layers]]}


def factors(merged: StateDict) -> tuple[list[float], list[float]]:
    """Return the elements in the layers, and outside them."""
    inside = [float(tensor[0, 0]) for name, tensor in merged.items() if name in LAYERS]
    return inside, [float(merged[name][0, 0]) for name in OUTSIDE]


def from_files(folder: Path, models: list[StateDict], base: StateDict, **options: Any) -> StateDict:
    paths = [folder / f"{index}.safetensors" for index in range(len(models))]
    for path, state in zip([*paths, folder / "base.safetensors"], [*models, base], strict=True):
        ws.save_checkpoint(state, path)
    out = folder / "out.safetensors"
    ws.merge_files(paths, out, method="lines", base=folder / "base.safetensors", **options)
    return ws.load_checkpoint(out)


@pytest.mark.parametrize(
    ("parameters", "count", "inside", "outside"),
    [
        ({"alpha": 0.25, "beta": 1.5}, 1, [0.25, 0.75, 1.25, 1.75], 0.25),
        ({"alpha": 0.25}, 1, [0.25, 0.5, 0.75, 1.0], 0.25),
        ({"beta": 3}, 1, [1, 2, 3, 4], 1),
        ({}, 4, [0.25, 0.5, 0.75, 1.0], 0.25),
        ({}, 1, [1, 1, 1, 1], 1),
        ({"alpha": 0, "beta": -3}, 2, [0, -1, -2, -3], 0),
        ({"alpha": None, "beta": None}, 2, [0.5, 2 / 3, 5 / 6, 1], 0.5),
    ],
)
def test_the_factor_grows_with_the_layer_from_memory_and_from_files(
    parameters: Mapping[str, float], count: int, inside: list[float], outside: float, tmp_path: Path
) -> None:
    base, models = constant(0.0), [constant(1.0), *(constant(0.0) for _ in range(count - 1))]
    merged = ws.merge(models, "lines", base=base, parameters=parameters)
    assert factors(merged) == (inside, [outside] * 3)
    assert_same_bits(from_files(tmp_path, models, base, parameters=parameters), merged)


@pytest.mark.parametrize("parameters", [{}, {"alpha": 0.1}, {"alpha": 0.1, "beta": 0.7}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_element_is_the_exact_value_rounded_once(
    parameters: dict[str, float], dtype: torch.dtype, tmp_path: Path
) -> None:
    """With the weights 0.3 and 0.7 as the float64 that they are, and thirds of the depth as they are."""
    *models, base = (network(seed, dtype) for seed in (1, 2, 3, 0))
    weights = [0.3, 0.7, 1.0]
    merged = ws.merge(models, "lines", base=base, weights=weights, parameters=parameters)
    alpha = Fraction(parameters["alpha"]) if parameters else Fraction(1, 3)
    beta = Fraction(parameters["beta"]) if "beta" in parameters else 1 - alpha
    for name, tensor in merged.items():
        factor = alpha + beta * Fraction(LAYERS.index(name) if name in LAYERS else 0, 3)
        moves = [factor * Fraction(weight) for weight in weights]
        tensors = [exact.fractions(state[name]) for state in (base, *models)]
        expected = exact.combined(tensors, [1 - sum(moves), *moves])
        assert exact.share_right(tensor, expected) == 1, name
    files = from_files(tmp_path, models, base, weights=weights, parameters=parameters)
    assert_same_bits(files, merged)


@pytest.mark.parametrize("parameters", [{}, {"alpha": 0.1, "beta": 0.7}], ids=str)
def test_every_layer_agrees_with_the_oracle(parameters: dict[str, float]) -> None:
    *models, base = (network(seed, torch.float64) for seed in (1, 2, 0))
    merged = ws.merge(models, "lines", base=base, weights=[0.3, -1.2], parameters=parameters)
    for name, tensor in merged.items():
        arrays = [state[name].numpy() for state in (*models, base)]
        layer = (LAYERS.index(name), 4) if name in LAYERS else None
        expected = named_oracles.merged("lines", arrays[:-1], arrays[-1], [0.3, -1.2], parameters, layer=layer)
        torch.testing.assert_close(tensor, torch.from_numpy(expected), rtol=1e-13, atol=1e-13)


def test_a_single_layer_has_the_factor_of_the_tensors_outside() -> None:
    merged = ws.merge([constant(1.0, 1)], "lines", base=constant(0.0, 1), parameters={"alpha": 0.25, "beta": 2})
    assert factors(merged) == ([0.25], [0.25] * 3)


def test_two_towers_are_counted_separately() -> None:
    names = [*(f"vision.blocks.{i}.w" for i in range(3)), *(f"text.blocks.{i}.w" for i in range(2))]
    state = {name: torch.ones(2) for name in names}
    base = {name: torch.zeros(2) for name in names}
    merged = ws.merge([state], "lines", base=base, parameters={"alpha": 0, "beta": 1})
    assert [float(merged[name][0]) for name in names] == [0, 0.5, 1, 0, 1]


def test_no_increase_is_task_arithmetic() -> None:
    *models, base = (network(seed) for seed in (1, 2, 0))
    found = ws.merge(models, "lines", base=base, weights=[0.3, 1], parameters={"alpha": 0.4, "beta": 0})
    assert_same_bits(
        found, ws.merge(models, "task_arithmetic", base=base, weights=[0.3, 1], parameters={"lambda": 0.4})
    )


def write_recipe(folder: Path, content: Mapping[str, Any]) -> StateDict:
    ws.save_checkpoint(constant(1.0), folder / "a.safetensors")
    ws.save_checkpoint(constant(0.0), folder / "base.safetensors")
    (folder / "recipe.yml").write_text(yaml.safe_dump(content))
    ws.merge_files(folder / "recipe.yml", folder / "out.safetensors")
    return ws.load_checkpoint(folder / "out.safetensors")


def test_of_slices_the_layers_of_the_output_count(tmp_path: Path) -> None:
    """Layers 2, 3, and 0 to 2 of the models are layers 1 to 5 of the output."""
    model, base = str(tmp_path / "a.safetensors"), str(tmp_path / "base.safetensors")
    ranges = ([2, 4], [0, 3])
    content = {
        "merge_method": "lines",
        "base_model": base,
        "parameters": {"alpha": 0.5, "beta": 2},
        "slices": [{"sources": [{"model": one, "layer_range": r} for one in (model, base)]} for r in ranges],
    }
    merged = write_recipe(tmp_path, content)
    found = [float(merged[f"model.layers.{number}.mlp.weight"][0, 0]) for number in range(5)]
    assert found == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert factors(merged)[1] == [0.5] * 3


def test_a_recipe_may_set_the_parameters_of_some_tensors(tmp_path: Path) -> None:
    model, base = str(tmp_path / "a.safetensors"), str(tmp_path / "base.safetensors")
    content = {
        "merge_method": "lines",
        "base_model": base,
        "models": [{"model": model}],
        "parameters": {"alpha": [{"filter": "lm_head", "value": 0.75}, {"value": 0.25}]},
    }
    assert factors(write_recipe(tmp_path, content)) == ([0.25, 0.5, 0.75, 1.0], [0.25, 0.25, 0.75])


def test_a_tensor_of_many_chunks_merges_as_its_parts() -> None:
    name = LAYERS[1]
    states = [{**constant(0.0), name: normals(seed, (400_000,), torch.bfloat16)} for seed in (1, 2, 0)]
    parts = [{**state, name: state[name][300_000:].clone()} for state in states]
    whole = ws.merge(states[:2], "lines", base=states[2], parameters={"alpha": 0.1})[name]
    part = ws.merge(parts[:2], "lines", base=parts[2], parameters={"alpha": 0.1})[name]
    assert same_bits(whole[300_000:].clone(), part)
