"""Entries of the cache of scores that somebody planted or damaged are not believed."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kitchen import PLAIN, fine_tunes, saved

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.tasks import ClassificationTask


def entry(evaluations: Path) -> Path:
    (path,) = evaluations.rglob("*.json")
    return path


PLANTED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another key": lambda content: content["key"].update(split="test"),
    "another task": lambda content: content["key"].update(task="0" * 64),
    "another version": lambda content: content["key"].update(version="0"),
    "no key": lambda content: content.pop("key"),
    "a key more": lambda content: content["key"].update(more=1),
    "no scores": lambda content: content.update(scores={}),
    "scores of other names": lambda content: content.update(scores={"beauty": 1.0}),
    "infinity": lambda content: content["scores"].update(accuracy=math.inf),
    "NaN": lambda content: content["scores"].update(accuracy=math.nan),
    "a word": lambda content: content["scores"].update(accuracy="1.0"),
    "true": lambda content: content["scores"].update(accuracy=True),
    "a whole number": lambda content: content["scores"].update(accuracy=1),
    "nothing": lambda content: content["scores"].update(accuracy=None),
    "a list of scores": lambda content: content.update(scores=[["accuracy", 1.0]]),
    "no reads": lambda content: content.pop("reads"),
    "a file that is not there": lambda content: content.update(reads={"/nowhere": "0" * 64}),
    "reads that are no digests": lambda content: content.update(reads={"/nowhere": 1}),
}


class Counting(ClassificationTask):
    """A task that counts how often it scores."""

    def score(self, module: Any, split: Any = "test") -> dict[str, float]:
        CALLS["score"] += 1
        return super().score(module, split)


CALLS: Counter[str] = Counter()
COUNTING = Counting("counting", PLAIN.build, PLAIN.load)


@pytest.fixture(autouse=True)
def _calls() -> None:
    CALLS.clear()


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_a_planted_evaluation_is_not_believed(change: Callable[[dict[str, Any]], object], evaluations: Path) -> None:
    _, states = fine_tunes(PLAIN, 1)
    first = ws.greedy_soup(states, COUNTING)
    assert CALLS.total() == 1
    content = json.loads(entry(evaluations).read_text())
    content["scores"]["accuracy"] = 1.0
    change(content)
    entry(evaluations).write_text(json.dumps(content))
    assert ws.greedy_soup(states, COUNTING).score == first.score
    assert CALLS.total() == 2
    assert ws.greedy_soup(states, COUNTING).score == first.score
    assert CALLS.total() == 2


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)], ids=["pipe", "folder", "loop"]
)
def test_pipes_and_folders_in_the_place_of_an_evaluation_are_not_waited_for(
    make: Callable[[Path], object], evaluations: Path
) -> None:
    _, states = fine_tunes(PLAIN, 1)
    ws.greedy_soup(states, COUNTING)
    path = entry(evaluations)
    path.unlink()
    make(path)
    with pytest.raises(CheckpointError, match=r"\.json (is a folder|is not a regular|cannot be written)"):
        ws.greedy_soup(states, COUNTING)


def test_scores_that_are_not_finite_are_found_again_each_time(evaluations: Path) -> None:
    class Diverged(Counting):
        def score(self, module: Any, split: Any = "test") -> dict[str, float]:
            return {**super().score(module, split), "loss": math.nan}

    task = Diverged("diverged", PLAIN.build, PLAIN.load)
    _, states = fine_tunes(PLAIN, 1)
    for calls in (1, 2):
        ws.greedy_soup(states, task)
        assert CALLS.total() == calls
    assert not list(evaluations.rglob("*.json"))


def test_a_model_that_changes_while_it_is_scored_is_an_error(tmp_path: Path, evaluations: Path) -> None:
    _, states = fine_tunes(PLAIN, 2)
    (path,) = saved(states[:1], tmp_path / "models")

    class Changing(ClassificationTask):
        def score(self, module: Any, split: Any = "test") -> dict[str, float]:
            ws.save_checkpoint(states[1], path)
            return super().score(module, split)

    with pytest.raises(CheckpointError, match=r"000\.safetensors has changed while the soup was made"):
        ws.greedy_soup([path], Changing("changing", PLAIN.build, PLAIN.load))
    assert not list(evaluations.rglob("*.json"))


def test_a_file_and_a_state_dict_of_one_name_are_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, states = fine_tunes(PLAIN, 2)
    ws.save_checkpoint(states[1], "0")
    soup = ws.greedy_soup([states[0], "0"], PLAIN)
    expected = ws.greedy_soup(states, PLAIN, cache=False)
    assert [trial.score for trial in soup.trials] == [trial.score for trial in expected.trials]
