"""The comparisons of transformers trained apart: their tasks, restricted symmetries, tables and kept results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace.tasks import ClassificationTask, Examples, TrainConfig
from weightspace.zoo.llama import Llama
from weightspace.zoo.vision_transformer import VisionTransformer

ANALYSES = Path(__file__).parents[2] / "analyses"

Script = Callable[[str], ModuleType]


def kept(name: str) -> Any:
    """Return the tasks in the results of a script that the repository keeps."""
    return json.loads((ANALYSES / "results" / f"{name}.json").read_text())["tasks"]


def small_vit() -> torch.nn.Module:
    return VisionTransformer(size=8, patch=4, channels=1, classes=4, width=8, depth=2, heads=2, hidden=12)


def images_of_noise() -> dict[Any, Examples]:
    """Return images of four classes, each brighter in a quarter of its own."""
    labels = torch.arange(192) % 4
    images = 0.3 * torch.randn(192, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 4 * (label // 2) :, 4 * (label % 2) :] += 1
    return {split: Examples(images, labels) for split in ("train", "validation", "test")}


def toy() -> ClassificationTask:
    recipe = TrainConfig(epochs=6, learning_rate=1e-2)
    return ClassificationTask("toy", small_vit, images_of_noise, batch_size=48, recipe=recipe)


def small_llama() -> torch.nn.Module:
    return Llama(vocabulary=7, length=6, width=16, depth=2, heads=4, groups=2, hidden=12)


@pytest.mark.parametrize(
    ("network", "args"),
    [(small_vit, (torch.randn(2, 1, 8, 8),)), (small_llama, (torch.arange(6)[None],))],
    ids=["vit", "llama"],
)
def test_restricted_symmetries_hold(script: Script, network: Callable[[], torch.nn.Module], args: Any) -> None:
    symmetries = script("symmetries")
    full = ws.derive_spec(network(), args, symmetry="full")
    signed = ws.derive_spec(network(), args, symmetry="signed")
    specs = {
        "permutations": symmetries.restricted(signed, lambda group: False),
        "heads": symmetries.only_rotations(full, of_streams=False),
        "streams": symmetries.only_rotations(full, of_streams=True),
    }
    for spec in specs.values():
        assert ws.verify_spec(spec, network(), args)
    turned = {group for group, kind in full.kinds.items() if kind in ("orthogonal", "phases")}
    left = {
        name: {group for group in turned if spec.kinds.get(group) == full.kinds[group]} for name, spec in specs.items()
    }
    assert left == {"permutations": set(), "heads": turned & set(full.outer), "streams": turned - set(full.outer)}
    assert set(specs["permutations"].kinds.values()) == {"permutation"}


def test_alignments_of_a_toy_are_measured_drawn_and_kept(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, alignments, steps = script("transformer_tasks"), script("alignments"), script("learning_steps")
    monkeypatch.setitem(tasks.FURTHER, "toy", toy)
    methods = {
        "none": alignments.unaligned,
        "activations": alignments.aligned(),
        "learned": alignments.aligned(method="learned", steps=5),
        "fitted": alignments.then_least_squares(alignments.unaligned),
    }
    command = alignments.alignment_script("toys", "Toys.", methods=methods, tasks=["toy"])
    arguments = ["--seeds", "2", "--first-seed", "0", "--cache", str(tmp_path), "--output", str(tmp_path)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "| activations |" in result.output
    found = alignments.kept_tasks(tmp_path / "results" / "toys.json")["toy"]["rows"]["0, 1"]
    assert list(found) == list(methods)
    assert found["learned"]["barrier"] <= found["none"]["barrier"]
    assert (tmp_path / "figures" / "toys.png").stat().st_size > 10_000
    only = CliRunner().invoke(command, [*arguments, "--methods", "none"], catch_exceptions=False)
    assert "activations" not in only.output
    by_steps = {"0": found["activations"], "5": found["learned"]}
    steps.draw_steps({"toy": {"0, 1": by_steps}}, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("clip-fashion", {"model": "orthogonal", "model/2": "orthogonal", "model.visual": "orthogonal"}),
        ("clip-fashion-ln-pre", {"model": "orthogonal", "model/2": "orthogonal", "model.visual": "permutation"}),
    ],
)
def test_the_streams_of_clip_and_its_joint_space_may_be_mixed_but_for_a_norm_that_writes(
    script: Script, name: str, streams: dict[str, str]
) -> None:
    pytest.importorskip("open_clip")
    network = script("transformer_tasks").FURTHER[name]().network()
    spec = ws.derive_spec(network, (torch.randn(2, 1, 28, 28),), symmetry="full")
    assert {group: spec.kinds[group] for group in streams} == streams
    if name.endswith("ln-pre"):
        assert any("ln_pre enters the residual stream" in note for note in spec.frozen)


@pytest.mark.parametrize(("norm_first", "kind"), [(True, "orthogonal"), (False, "permutation")])
def test_the_stream_of_an_encoder_of_glosses_may_be_mixed_if_it_is_pre_norm(
    script: Script, *, norm_first: bool, kind: str
) -> None:
    network = script("transformer_tasks").Encoder(norm_first=norm_first, width=16, depth=2, heads=2, hidden=24)
    spec = ws.derive_spec(network, (torch.randint(100, (2, 16)),), symmetry="full")
    assert spec.kinds["positions"] == kind


def test_glosses_become_numbers_of_frequent_words(script: Script) -> None:
    numbered = script("transformer_tasks")._numbered
    assert numbered(["a", "rare", "dog"], {"a": 2, "dog": 7}) == [2, 1, 7] + [0] * 13
    assert len(numbered(["a"] * 40, {"a": 2})) == 16


def test_in_the_kept_results_learning_brings_all_transformers_together() -> None:
    tasks = kept("transformers")
    for name, result in tasks.items():
        median = {method: row["barrier"] for method, row in result["median"].items()}
        assert median["full, learned"] < 0.3 * median["none"], name
        assert median["full, activations"] < median["activation matching"], name


def test_in_the_kept_results_a_norm_that_writes_into_the_stream_costs_the_closed_form() -> None:
    median = {name: result["median"] for name, result in kept("transformers").items()}
    free, held = (median[name]["full, activations"]["barrier"] for name in ("clip-fashion", "clip-fashion-ln-pre"))
    assert free < 0.5 * held


@pytest.mark.parametrize("name", ["symmetries", "learning_steps", "llama_widths", "singular_vectors"])
def test_the_readme_gives_the_kept_medians(name: str) -> None:
    text = (ANALYSES / "README.md").read_text()
    section = next(part for part in text.split("\n### ") if f"analyses/{name}.py" in part)
    for task, result in kept(name).items():
        for row in [result["median"]] if name == "singular_vectors" else result["median"].values():
            value = row if name == "singular_vectors" else {"barrier": row["barrier"]}
            for figure in value.values():
                assert f"{figure:.3f}".replace("0.", ".", 1) in section, (task, figure)
