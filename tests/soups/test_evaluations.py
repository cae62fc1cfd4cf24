"""Evaluations are made once: whatever is killed, whatever is added, and only as long as nothing has changed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from kitchen import PLAIN, TASK, equal, examples, fine_tunes, network, saved

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.soups.fingerprints import fingerprint_of_data, fingerprint_of_state, fingerprint_of_task
from weightspace.tasks import ClassificationTask, Examples
from weightspace.zoo import load_task


class Counting(ClassificationTask):
    """A task that counts how often it scores."""

    calls: ClassVar[Counter[str]] = Counter()

    def score(self, module: Any, split: Any = "test") -> dict[str, float]:
        self.calls[split] += 1
        return super().score(module, split)


@pytest.fixture
def counting() -> ClassificationTask:
    Counting.calls.clear()
    return Counting("counting", network, examples)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def test_a_rerun_repeats_none_and_finds_the_same_soup(counting: Any, evaluations: Path) -> None:
    _, states = fine_tunes(TASK, 4)
    first = ws.greedy_soup(states, counting)
    assert Counting.calls == {"validation": 7}
    assert len(files(evaluations)) == 7
    again = ws.greedy_soup(states, counting)
    assert Counting.calls == {"validation": 7}
    assert equal(first.state, again.state)
    assert first.trials == again.trials


def test_the_same_models_in_other_files_are_the_same_models(counting: Any, tmp_path: Path) -> None:
    _, states = fine_tunes(TASK, 3)
    ws.greedy_soup(states, counting)
    ws.greedy_soup(saved(states, tmp_path / "a", ".pt"), counting)
    ws.greedy_soup(saved(states, tmp_path / "b"), counting)
    assert Counting.calls == {"validation": 5}


def test_of_a_larger_folder_only_what_is_new_is_scored(counting: Any) -> None:
    _, states = fine_tunes(TASK, 5)
    ws.greedy_soup(states[:4], counting)
    before = Counting.calls["validation"]
    soup = ws.greedy_soup(states, counting)
    singles = sum(trial.size == 1 for trial in soup.trials)
    assert singles == 5
    assert 1 <= Counting.calls["validation"] - before <= 5  # the new one, and soups from its place on


def test_without_the_cache_nothing_is_kept_nor_found(counting: Any, evaluations: Path) -> None:
    _, states = fine_tunes(TASK, 2)
    ws.greedy_soup(states, counting, cache=False)
    assert not files(evaluations)
    ws.greedy_soup(states, counting)
    ws.greedy_soup(states, counting, cache=False)
    assert Counting.calls == {"validation": 9}


def test_a_function_is_kept_under_its_key_only(evaluations: Path) -> None:
    calls: list[int] = []

    def score(state: StateDict) -> float:
        calls.append(1)
        return -float(state["w"].abs().sum())

    states = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([-2.0])}]
    for key, expected in ((None, 3), (None, 6), ("l1", 9), ("l1", 9), ("l1, again", 12)):
        soup = ws.greedy_soup(states, score, cache_key=key)
        assert len(calls) == expected
        assert soup.score == -0.5
    assert len(files(evaluations)) == 6


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"scores": 3}', b'{"scores": {"accuracy": "high"}}'])
def test_a_damaged_file_is_an_evaluation_that_was_not_made(damage: bytes, counting: Any, evaluations: Path) -> None:
    _, states = fine_tunes(TASK, 2)
    soup = ws.greedy_soup(states, counting)
    files(evaluations)[1].write_bytes(damage)
    assert ws.greedy_soup(states, counting).trials == soup.trials
    assert Counting.calls == {"validation": 4}
    assert all(json.loads(path.read_text())["key"]["version"] == ws.__version__ for path in files(evaluations))


def test_statistics_that_are_reset_are_another_evaluation(counting: Any) -> None:
    _, states = fine_tunes(TASK, 2)
    for statistics, expected in (("none", 3), ("reset", 4), ("auto", 4), ("none", 4)):
        ws.greedy_soup(states, counting, statistics=statistics)  # type: ignore[arg-type]
        assert Counting.calls == {"validation": expected}


def test_wise_ft_keeps_its_points_and_shares_its_ends_with_soups(counting: Any) -> None:
    base, (tuned, *_) = fine_tunes(TASK, 1)
    first = ws.wise_ft(base, tuned, counting, (0, 0.5, 1), splits=["validation"])
    assert Counting.calls == {"validation": 3}
    again = ws.wise_ft(base, tuned, counting, (0, 0.25, 0.5, 1), splits=["validation"])
    assert Counting.calls == {"validation": 4}
    assert [again.scores["validation"][at] for at in (0, 2, 3)] == list(first.scores["validation"])
    ws.greedy_soup([tuned], counting)
    assert Counting.calls == {"validation": 4}


def shift(examples: Any, amount: float) -> Any:
    return {split: Examples(one.inputs + amount, one.labels) for split, one in examples.items()}


@lru_cache(maxsize=1)
def cached_examples() -> Any:
    return examples()


OTHERS = {
    "name": replace(PLAIN, name="another"),
    "network": replace(PLAIN, build=network),
    "function": replace(PLAIN, load=cached_examples),
    "argument": replace(PLAIN, load=partial(shift, examples(), 0.5)),
    "other argument": replace(PLAIN, load=partial(shift, examples(), 0.25)),
    "objective": replace(PLAIN, objective="loss"),
    "lambda": replace(PLAIN, load=lambda: examples()),
    "class": Counting(PLAIN.name, PLAIN.build, PLAIN.load),
}


def test_tasks_that_differ_in_anything_have_different_fingerprints() -> None:
    found = [fingerprint_of_task(task) for task in (PLAIN, *OTHERS.values())]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", OTHERS)
def test_a_fingerprint_is_the_same_again_and_after_use(name: str) -> None:
    task = OTHERS[name]
    before = fingerprint_of_task(task)
    state = ws.train(task, 0, epochs=1)
    module = task.network()
    module.load_state_dict(state)
    task.score(module)
    assert fingerprint_of_task(task) == before


def test_built_in_tasks_have_fingerprints_that_other_processes_share() -> None:
    code = (
        "import weightspace as ws\n"
        "from weightspace.soups.fingerprints import *\n"
        "task = ws.load_task('digits-cnn')\n"
        "print(fingerprint_of_task(task), fingerprint_of_data(task, 'validation'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    task = load_task("digits-cnn")
    assert done.stdout.split() == [fingerprint_of_task(task), fingerprint_of_data(task, "validation")]


def test_data_are_known_by_their_content() -> None:
    same = replace(PLAIN, load=cached_examples)
    assert fingerprint_of_data(same, "test") == fingerprint_of_data(PLAIN, "test")
    assert fingerprint_of_data(PLAIN, "validation") != fingerprint_of_data(PLAIN, "test")
    moved = replace(PLAIN, load=partial(shift, examples(), 0.5))
    assert fingerprint_of_data(moved, "test") != fingerprint_of_data(PLAIN, "test")


def test_a_task_may_speak_for_its_data() -> None:
    class Large(ClassificationTask):
        def fingerprint(self, split: str) -> str:
            return f"images of 2024, {split}"

        def batches(self, split: Any, seed: int) -> Any:
            raise AssertionError

    task = Large("large", network, examples)
    assert fingerprint_of_data(task, "test") != fingerprint_of_data(task, "validation")


def test_models_are_known_by_their_content() -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(2, dtype=torch.bfloat16)}
    found = fingerprint_of_state(state)
    assert found == fingerprint_of_state({"b": state["b"].clone(), "a": state["a"].clone()})
    others = (
        {**state, "a": torch.tensor([1.0, -1.0])},
        {**state, "a": torch.ones(2, 1)},
        {**state, "a": torch.ones(2, dtype=torch.float64)},
        {"a": state["a"], "c": state["b"]},
        {"a": state["b"], "b": state["a"]},
    )
    assert len({found, *map(fingerprint_of_state, others)}) == 6


def test_the_source_of_a_users_task_and_of_its_neighbours_counts(tmp_path: Path) -> None:
    def found(source: str = "", neighbour: str = "") -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "near.py").write_text(f"from weightspace.zoo.digits import digits_examples\n{neighbour}\n")
        (folder / "mine.py").write_text(
            "import near\nfrom weightspace.tasks import ClassificationTask\nfrom weightspace.zoo.architectures "
            "import mlp\ndef build():\n    return mlp(64, (8,), 10)\n"
            f"task = ClassificationTask('mine', build, near.digits_examples)\n{source}\n"
        )
        sys.modules.pop("near", None)
        return fingerprint_of_task(load_task(f"{folder}/mine.py:task"))

    assert found() == found()
    assert len({found(), found(source="# edited"), found(neighbour="# edited")}) == 3


def test_a_task_without_a_fingerprint_is_an_error_that_says_what_to_do() -> None:
    task = replace(PLAIN, load=partial(shift, (number for number in range(3))))
    with pytest.raises(WeightspaceError, match=r"task 'plain' cannot be cached: it holds a generator.*--no-cache"):
        fingerprint_of_task(task)


def test_anything_that_a_task_may_hold_has_a_fingerprint() -> None:
    class Holder:
        @cached_property
        def large(self) -> list[int]:
            return [1, 2]

    holder, circle = Holder(), []
    circle.append(circle)
    values: list[Any] = [
        *(None, True, 1, 1.5, "a", b"a", Path("a"), [1], (1,), {1: 2}, {1}, frozenset({2}), range(3)),
        *(torch.ones(2), torch.float32, torch.device("cpu"), torch.nn.Linear(2, 2), slice(1, 2), len, torch),
        *(holder, circle, holder.__init__, SimpleNamespace(a=1), files, Counter("ab"), torch.Size([2])),
    ]
    found = [fingerprint_of_task(SimpleNamespace(name="t", value=value)) for value in values]  # type: ignore[arg-type]
    assert len(set(found)) == len(found)
    _ = holder.large
    again = [fingerprint_of_task(SimpleNamespace(name="t", value=value)) for value in values]  # type: ignore[arg-type]
    assert found == again


PROGRAM = """
import sys, time
from pathlib import Path
import torch
import weightspace as ws
from weightspace.tasks import ClassificationTask
import kitchen

class Slow(ClassificationTask):
    def score(self, module, split="test"):
        found = super().score(module, split)
        time.sleep(0.15)
        with open("evaluations.txt", "a") as note:
            note.write(f"{sum(float(one.double().sum()) for one in module.parameters()):.12g}\\n")
        return found

if __name__ == "__main__":
    torch.set_num_threads(1)
    soup = ws.greedy_soup(sorted(Path("models").iterdir()), Slow("slow", kitchen.network, kitchen.examples),
                          executor=sys.argv[1], workers=2)
    ws.save_checkpoint(soup.state, "soup.pt")
    print(soup.ingredients)
"""


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_killed_at_any_moment_and_run_again_it_repeats_no_evaluation(
    tmp_path: Path, evaluations: Path, executor: str
) -> None:
    _, states = fine_tunes(TASK, 6)
    saved(states, tmp_path / "models")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "program.py", executor]
    note = tmp_path / "evaluations.txt"
    for most in (2, 5, 8):
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as running:
            for _ in every(0.01, 60):
                if running.poll() is not None or len(files(evaluations)) >= most:
                    break
            running.send_signal(signal.SIGKILL)
        time.sleep(0.3)  # workers die with it
    kept = len(files(evaluations))
    assert 8 <= kept < 11
    lost = len(lines(note)) - kept  # scored, and killed before they were written down
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert len(set(lines(note))) == len(files(evaluations)) == 11
    assert len(lines(note)) == 11 + lost
    expected = ws.greedy_soup(states, TASK, cache=False)
    assert done.stdout.strip() == str(expected.ingredients)
    assert equal(ws.load_checkpoint(tmp_path / "soup.pt"), expected.state)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def every(seconds: float, limit: float) -> Iterator[None]:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        yield
        time.sleep(seconds)
