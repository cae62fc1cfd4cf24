"""Searches keep to their time, see a bad output before the first trial, and say which simple merge beats them."""

import gc
import os
import shutil
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import weightspace as ws
from weightspace import cli
from weightspace.errors import WeightspaceWarning
from weightspace.merging import ExecutionOptions, ReadingOptions
from weightspace.progress import Progress
from weightspace.searching import CommandScore, SearchOptions, candidates
from weightspace.searching.output_check import check_output
from weightspace.searching.search import space_of
from weightspace.soups.evaluation import Place
from weightspace.tasks import ClassificationTask

from .test_search import TINY, Toy, digits_recipe

RECIPE = """
merge_method: task_arithmetic
base_model: base.safetensors
models:
- {model: a.safetensors, parameters: {weight: {search: [0, 1]}}}
- {model: b.safetensors, parameters: {weight: {search: [0, 1]}}}
"""


@pytest.fixture
def recipe(tiny: Path) -> Path:
    Path("recipe.yml").write_text(RECIPE)
    return tiny


def refused(*words: str) -> str:
    """Return the one line of a search that fails before its first trial."""
    score = f"{shutil.which('touch')} scored {{model}}"
    done = CliRunner().invoke(
        cli.main, ["search", "recipe.yml", "--score", score, "--mode", "min", "--trials", "3", *words]
    )
    assert done.exit_code == 2, done.output
    assert not Path("scored").exists()
    return done.stderr


def test_an_output_in_a_file_or_a_read_only_folder_is_refused_at_once(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    assert "is not a folder" in refused("-o", "file/best.safetensors")
    assert "is not a folder" in refused("-o", "best.safetensors", "--report", "file/best.yml")
    Path("kept").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "kept" and allowed(path, mode))
    assert "is read-only" in refused("-o", "kept/best.safetensors")


def test_a_full_disk_and_too_little_memory_are_found_at_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(recipe)._replace(free=10)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: full)
        assert "but the disk has 10 bytes free" in refused("-o", "best.safetensors")
    for name in ("base", "a", "b"):
        ws.save_checkpoint({"w": torch.zeros(2000, 2000)}, f"{name}.safetensors")
    Path("recipe.yml").write_text(RECIPE.replace("task_arithmetic", "{choices: [task_arithmetic, tsv_m]}"))
    assert "needs about" in refused("-o", "best.safetensors")
    check_output(space_of("recipe.yml", None), "best.safetensors", ReadingOptions(), ExecutionOptions(400 * 2**20))


class SlowTask(ClassificationTask):
    """A task that takes a while for each score."""

    def score(self, module: nn.Module, split: Any = "test") -> Any:
        time.sleep(0.05)
        return super().score(module, split)


def test_halving_stops_in_its_first_round(digits: ClassificationTask, trained: Path) -> None:
    slow = SlowTask(**{name: getattr(digits, name) for name in digits.__dataclass_fields__})
    options = SearchOptions(engine="random", trials=500, seconds=0.5, halving=True, references=False, cache=False)
    found = ws.search(digits_recipe(trained), slow, options=options)
    assert 1 <= len(found.trials) < 100
    assert [trial.index for trial in found.trials] == list(range(len(found.trials)))
    assert [trial.share for trial in found.trials].count(1) == 1
    assert found.trials[found.best].share == 1


def test_the_progress_of_halving_ends_at_its_total(digits: ClassificationTask, trained: Path) -> None:
    events: list[Progress] = []
    options = SearchOptions(engine="grid", trials=18, halving=True, references=False)
    ws.search(digits_recipe(trained), digits, options=options, on_progress=events.append)
    assert [event.index for event in events] == list(range(1, 27))  # 18 + 6 + 2
    assert {event.total for event in events} == {26}
    shares = [event.details["share"] for event in events]
    assert shares == pytest.approx([1 / 9] * 18 + [1 / 3] * 6 + [1] * 2)


def test_equal_recipes_are_reported_too(tiny: Path) -> None:
    Path("score.py").write_text("import pathlib, sys; print(sum(pathlib.Path(sys.argv[1]).read_bytes()))")
    score = CommandScore(f"{sys.executable} score.py {{model}}")
    events: list[Progress] = []
    content = {**TINY, "models": [{"model": {"choices": ["a.safetensors", "b.safetensors"]}}]}
    options = SearchOptions(engine="random", trials=7, references=False)
    for place in (Place(), Place(workers=2)):
        events.clear()
        found = ws.search(content, score, mode="max", options=replace(options, place=place), on_progress=events.append)
        assert [event.index for event in events] == list(range(1, 8))
        expected = sorted(trial.scores["score"] for trial in found.trials)
        assert sorted(event.value or 0.0 for event in events) == expected


@pytest.mark.filterwarnings("ignore:The gain over")
def test_references_are_of_the_winners_models_and_of_all_single_ones(tiny: Path) -> None:
    for name, value in {"base": 0.0, "a": 1.0, "b": 3.0, "c": 2.0}.items():
        ws.save_checkpoint({"w": torch.full((2,), value)}, f"{name}.safetensors")
    models = {"choices": [f"{name}.safetensors" for name in "abc"]}
    content = {**TINY, "models": [{"model": models, "parameters": {"weight": 1.0}}]}
    options = SearchOptions(engine="grid", trials=9)
    found = ws.search(content, lambda state: -abs(float(state["w"][0]) - 1.6), options=options)
    assert found.trials[found.best].values == {"models[0].model": "c.safetensors"}
    rows = {row.name: row for row in found.rows}
    assert rows["best single model"].note == "c.safetensors"
    tuned = rows["task arithmetic, λ tuned"]
    assert ("c.safetensors" in tuned.recipe, tuned.note) == (True, "λ = 0.8")
    highest = ws.search(content, lambda state: -abs(float(state["w"][0]) - 0.6), options=options)
    assert {row.name: row.note for row in highest.rows}["best single model"] in ("a.safetensors", "base.safetensors")


def test_a_reference_that_beats_the_whole_front_is_named(tiny: Path) -> None:
    for name, value in {"base": 0.0, "a": 1.0}.items():
        ws.save_checkpoint({"weight": torch.tensor([[value]])}, f"{name}.safetensors")
    content = {**TINY, "models": [{"model": "a.safetensors", "parameters": {"weight": {"choices": [3.0, 4.0]}}}]}
    content["parameters"] = {"normalize": False}
    tasks: Any = [Toy("low", 0.2), Toy("high", 0.3)]
    with pytest.warns(WeightspaceWarning, match="is at least as good on all tasks as every merge of the front"):
        found = ws.search(content, tasks, options=SearchOptions(trials=4))
    assert found.compared in [row.name for row in found.rows[:-1]]


LINES: dict[str, Any] = {"merge_method": "lines", "parameters": {"alpha": 0.5}}


@pytest.mark.filterwarnings("ignore:The gain over")
@pytest.mark.parametrize("kind", ["then", "documents"])
def test_merges_of_several_steps_are_compared_too(kind: str, tiny: Path) -> None:
    models = [{"model": f"{name}.safetensors"} for name in "ab"]
    first: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": "base.safetensors", "models": models}
    weight = {"parameters": {"weight": {"search": [0, 1]}}}
    if kind == "then":
        content: Any = {**first, "parameters": {"lambda": {"search": [0, 1]}}, "then": [LINES]}
        Path("steps.yml").write_text(__import__("yaml").safe_dump(content))
    else:
        last = {**first, "models": [{"model": "first", **weight}, models[1]]}
        Path("steps.yml").write_text(__import__("yaml").safe_dump_all([{"name": "first", **first}, last]))
    found = ws.search("steps.yml", lambda state: float(state["w"].sum()), options=SearchOptions(trials=3))
    names = ["best single model", "uniform", "task arithmetic, λ tuned", "TIES, defaults", "best of the search"]
    assert [row.name for row in found.rows] == names
    assert not found.unreferenced


def test_a_recipe_without_references_says_why(recipe: Path) -> None:
    Path("recipe.yml").write_text(
        "merge_method: passthrough\nslices:\n- sources: [{model: {choices: [a.safetensors]}, layer_range: [0, 1]}]\n"
    )
    from weightspace.checkpoints.yaml_file import read_yaml
    from weightspace.merging.recipe.parse import parse_recipe
    from weightspace.searching.references import reason_for_none, references_of

    assert read_yaml(Path("recipe.yml"))
    text = Path("recipe.yml").read_text().replace("{choices: [a.safetensors]}", "a.safetensors")
    moved = parse_recipe(text, "recipe", ignored=lambda line: None)
    assert reason_for_none(moved) == "the recipe moves layers"
    assert references_of(moved) == []


def test_candidates_are_released_before_the_next_one_and_after_the_search(tiny: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def score(state: ws.StateDict) -> float:
        gc.collect()
        assert not [one for one in alive if one() is not None]
        alive.extend(weakref.ref(tensor) for tensor in state.values())
        return float(state["v"].sum())

    options = SearchOptions(trials=4, references=False, cache=False)
    ws.search(TINY, score, options=replace(options, engine="random"))
    assert len(alive) >= 8
    assert not candidates._LATEST
