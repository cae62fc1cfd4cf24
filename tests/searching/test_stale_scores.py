"""Scores are cached under everything that they depend on, so that none is found after a change."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import weightspace as ws
from weightspace.merging import ReadingOptions
from weightspace.searching import CommandScore, SearchOptions
from weightspace.searching.candidates import Candidate

#: Prints the number in a model's configuration.
SCORE = "import json, pathlib, sys; print(json.loads(pathlib.Path(sys.argv[1], 'config.json').read_text())['quality'])"
LISTED = SearchOptions(engine="grid", trials=2, references=False)


@pytest.fixture
def folders(tiny: Path) -> Path:
    """Two models with configuration and tokenizer, in the working directory."""
    for name in ("one", "two"):
        Path(name).mkdir()
        ws.save_checkpoint({"w": torch.full((2, 2), float(len(name)))}, Path(name, "model.safetensors"))
        Path(name, "config.json").write_text('{"quality": 1}')
        Path(name, "tokenizer.json").write_text("{}")
    Path("score.py").write_text(SCORE)
    return tiny


def recipe(**further: Any) -> dict[str, Any]:
    """Return a recipe with a searched weight."""
    models = [{"model": "two", "parameters": {"weight": {"search": [0.1, 1]}}}]
    return {"merge_method": "task_arithmetic", "base_model": "one", "models": models, **further}


@pytest.mark.parametrize("further", [{}, {"then": [{"merge_method": "svc"}]}], ids=["merge", "then"])
def test_a_changed_configuration_is_scored_again(further: dict[str, Any], folders: Path) -> None:
    by_command = CommandScore(f"{sys.executable} score.py {{model}}")

    def score() -> float:
        found = ws.search(recipe(**further), by_command, options=LISTED)
        return found.trials[found.best].scores["score"]

    assert score() == 1
    Path("one/config.json").write_text('{"quality": 2}')
    assert score() == 2


def test_evidence_of_earlier_documents_is_read(tiny: Path) -> None:
    state = ws.load_checkpoint("a.safetensors")
    for name in "ab":
        fisher = {key: torch.ones_like(tensor) for key, tensor in state.items()}
        ws.save_checkpoint(fisher, f"{name}.fisher.safetensors")
    models = [{"model": f"{name}.safetensors", "evidence": f"{name}.fisher.safetensors"} for name in "ab"]
    first = {"name": "mean", "merge_method": "fisher", "models": models}
    second = {"merge_method": "slerp", "base_model": "base.safetensors", "models": [{"model": "mean"}]}
    text = yaml.safe_dump_all([first, {**second, "parameters": {"t": 0.25}}])
    assert {"a.fisher.safetensors", "b.fisher.safetensors"} <= Candidate(text, "recipe").files().keys()


def test_a_changed_name_map_is_scored_again(tiny: Path) -> None:
    ws.save_checkpoint({"v": torch.zeros(2), "w": torch.zeros(2)}, "base.safetensors")
    ws.save_checkpoint({"x": torch.ones(2), "y": torch.full((2,), 5.0)}, "a.safetensors")
    content: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": "base.safetensors",
        "models": [{"model": "a.safetensors", "parameters": {"weight": {"search": [0.5, 1]}}}],
    }
    options = SearchOptions(engine="grid", trials=2, references=False, cache_key="v")
    first: Callable[[ws.StateDict], float] = lambda state: float(state["v"].sum())  # noqa: E731

    def score(names: dict[str, str]) -> float:
        rules = [{"theirs": theirs, "ours": ours} for theirs, ours in names.items()]
        Path("map.yml").write_text(yaml.safe_dump({"sides": ["theirs", "ours"], "rules": rules}))
        found = ws.search(content, first, options=options, reading=ReadingOptions(names="map.yml"))
        return found.trials[found.best].scores["score"]

    assert score({"x": "v", "y": "w"}) == 2
    assert score({"y": "v", "x": "w"}) == 10
