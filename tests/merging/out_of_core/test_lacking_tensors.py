"""Tensors that one model of a recipe lacks: merged from the others as mergekit does, refused where that is no merge."""

from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, MergeReport, merge_files, reproduce

BIAS = "layers.1.mlp.bias"
MODELS = ("base", "a", "b", "c")


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, StateDict]:
    """Return models of two layers; they are also files in the working directory, of which ``b`` lacks a bias."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, StateDict] = {}
    for seed, name in enumerate(MODELS):
        generator = torch.Generator().manual_seed(seed)
        keys = [f"layers.{layer}.mlp.{part}" for layer in range(2) for part in ("weight", "bias")]
        found[name] = {key: torch.randn(6, generator=generator) for key in keys}
        save(name, found[name], *([BIAS] if name == "b" else []))
    return found


def save(name: str, state: StateDict, *lacking: str) -> None:
    ws.save_checkpoint({key: tensor for key, tensor in state.items() if key not in lacking}, f"{name}.safetensors")


def merge(method: str, models: str, base: str = "", *, out: str = "out.safetensors", **options: bool) -> MergeReport:
    entries = "".join(f"- {{model: {name}.safetensors, parameters: {{weight: 0.5}}}}\n" for name in models)
    text = f"merge_method: {method}\nmodels:\n{entries}" + (f"base_model: {base}.safetensors\n" if base else "")
    if method == "slerp":
        text = text.replace(", parameters: {weight: 0.5}", "") + "parameters: {t: 0.5}\n"
    if method == "model_stock":
        text = text.replace(", parameters: {weight: 0.5}", "")
    Path("recipe.yml").write_text(text)
    return merge_files("recipe.yml", out, execution=ExecutionOptions(fsync=False), **options)


def test_the_mean_is_that_of_the_models_that_have_it(states: dict[str, StateDict]) -> None:
    report = merge("linear", "abc")
    assert report.warnings == (
        f"b.safetensors has no {BIAS!r}, which other models have: merged without b.safetensors, as mergekit does.",
    )
    merged = ws.load_checkpoint("out.safetensors")
    assert torch.allclose(merged[BIAS], (states["a"][BIAS] + states["c"][BIAS]) / 2)
    assert torch.allclose(merged["layers.0.mlp.bias"], sum(states[n]["layers.0.mlp.bias"] for n in "abc") / 3)
    assert reproduce("out.safetensors").equal


def test_a_model_without_the_tensor_changes_nothing_in_the_base(states: dict[str, StateDict]) -> None:
    merge("task_arithmetic", "abc", "base")
    expected = states["base"][BIAS] + 0.5 * sum(states[n][BIAS] - states["base"][BIAS] for n in "ac")
    assert torch.allclose(ws.load_checkpoint("out.safetensors")[BIAS], expected, atol=1e-6)
    merge("task_arithmetic", "b", "base")
    assert torch.equal(ws.load_checkpoint("out.safetensors")[BIAS], states["base"][BIAS])


def test_a_method_of_two_models_copies_what_one_has(states: dict[str, StateDict]) -> None:
    merge("slerp", "ab", "a")
    assert torch.equal(ws.load_checkpoint("out.safetensors")[BIAS], states["a"][BIAS])


@pytest.mark.parametrize(("method", "models", "base"), [("ties", "ac", "b"), ("model_stock", "ab", "base")])
def test_what_the_method_cannot_do_is_refused_or_copied_leniently(
    method: str, models: str, base: str, states: dict[str, StateDict]
) -> None:
    with pytest.raises(CheckpointError, match=f"b.safetensors has no tensor '{BIAS}'.*--lenient copies it"):
        merge(method, models, base)
    merge(method, models, base, lenient=True)
    assert torch.equal(ws.load_checkpoint("out.safetensors")[BIAS], states["a"][BIAS])


def test_a_strict_reading_refuses(states: dict[str, StateDict]) -> None:
    with pytest.raises(WeightspaceError, match="Expected the same tensors in all"):
        merge("linear", "abc", strict=True)


def test_merges_without_a_recipe_refuse(states: dict[str, StateDict]) -> None:
    with pytest.raises(CheckpointError, match="Expected the same tensors in all"):
        merge_files(["a.safetensors", "b.safetensors"], "out.safetensors")


def test_a_whole_layer_is_no_tensor_that_a_model_may_lack(states: dict[str, StateDict]) -> None:
    save("b", states["b"], BIAS, "layers.1.mlp.weight")
    with pytest.raises(CheckpointError, match=r"b.safetensors has no tensor 'layers.1.mlp.weight'"):
        merge("linear", "abc")


def test_a_model_that_lacks_most_tensors_is_another_network(states: dict[str, StateDict]) -> None:
    more = {f"layers.{layer}.norm.{part}": torch.ones(2) for layer in range(2) for part in "abc"}
    for name in "ac":
        save(name, states[name] | more)
    with pytest.raises(CheckpointError, match=r"b.safetensors lacks 7 of the 10 tensors .* one architecture"):
        merge("linear", "abc")
