"""The scoreboard: ranks against worked examples, settings of every method, and one suite shrunk, end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace.merging.methods import METHODS, Method, Parameter

Script = Callable[[str], ModuleType]
ANALYSES = Path(__file__).parents[2] / "analyses"


def test_ranks_and_their_critical_difference_are_those_of_worked_examples(script: Script) -> None:
    ranks = script("ranks").ranks_of({"a": [3.0, 1.0, 2.0], "b": [2.0, 3.0, 2.0], "c": [1.0, 2.0, 0.0]})
    assert ranks.means == pytest.approx({"a": (1 + 3 + 1.5) / 3, "b": (2 + 1 + 1.5) / 3, "c": (3 + 2 + 3) / 3})
    # Demšar 2006, section 3.2.2: four classifiers on 14 data sets, q = 2.569, CD = 1.25.
    assert script("ranks").critical_difference(4, 14) == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)


def test_methods_that_differ_by_less_than_the_critical_difference_are_near_the_best(script: Script) -> None:
    blocks = 40
    scores = {"good": [3.0] * blocks, "fair": [2.0] * blocks, "poor": [1.0] * blocks}
    scores["equal"] = [3.0] * blocks
    ranks = script("ranks").ranks_of(scores)
    assert ranks.means == {"good": 1.5, "equal": 1.5, "fair": 3.0, "poor": 4.0}
    assert ranks.near_best == ("equal", "good")


@pytest.mark.parametrize("tasks", [4, 5, 8])
def test_every_method_of_the_registry_has_a_line_of_at_most_eight_settings(script: Script, tasks: int) -> None:
    settings = script("merge_settings")
    found = {entry.method: entry for entry in settings.entries(tasks)}
    assert set(found) == set(METHODS)
    for entry in found.values():
        if entry.reason:
            continue
        assert math.prod(map(len, entry.space.values())) <= settings.TRIALS
        known = {one.name for one in METHODS[entry.method].parameters}
        first = {one.name for one in METHODS["task_arithmetic"].parameters} if entry.step else known
        for name in (*entry.space, *entry.defaults):
            assert name.removeprefix("then.") in (known if name.startswith("then.") or not entry.step else first), entry
    assert not found["task_arithmetic"].reason
    assert found["slerp"].reason


def test_a_method_added_to_the_registry_is_tried_by_the_names_of_its_parameters(script: Script) -> None:
    settings = script("merge_settings")
    rows = {
        "scaled": Method("scaled", "x:x", "", "", parameters=(Parameter("lambda", 1.0),)),
        "thinned": Method("thinned", "x:x", "", "", parameters=(Parameter("keep", 0.5, low=0, high=1),)),
        "plain": Method("plain", "x:x", "", ""),
        "pair": Method("pair", "x:x", "", "", models=(2, 2)),
        "needy": Method("needy", "x:x", "", "", evidence="something else"),
        "open": Method("open", "x:x", "", "", parameters=(Parameter("strength"),)),
        "after": Method("after", "x:x", "", "", base="end", models=(1, 1)),
    }
    found = {entry.method: entry for entry in settings.entries(4, rows)}
    assert found["scaled"].space == {"lambda": settings.MEANS}
    assert len(found["thinned"].space["keep"]) == settings.TRIALS
    assert found["plain"].space == {}
    assert [name for name, entry in found.items() if entry.reason] == ["pair", "needy", "open"]
    assert found["after"].label == "task_arithmetic, then after"
    assert found["after"].space == {"lambda": settings.SUMS}


def test_the_joint_score_is_the_mean_over_the_tasks_each_with_its_own_head(script: Script) -> None:
    suites = script("suites")
    from weightspace.tasks import Examples, TrainConfig

    def load() -> dict[str, Examples]:
        examples = Examples(torch.eye(4), torch.tensor([0, 1, 0, 1]))
        return dict.fromkeys(("train", "validation", "test"), examples)

    heads = {"right": torch.eye(2)[[0, 1, 0, 1]].T, "wrong": torch.eye(2)[[1, 0, 0, 1]].T}
    recipe = TrainConfig(epochs=0)
    parts = {
        name: suites.HeadedTask(name, torch.nn.Identity, load, recipe=recipe, head=head) for name, head in heads.items()
    }
    joint = suites.JointTask("joint", parts, "accuracy")
    assert isinstance(joint, ws.Task)
    scores = joint.score(torch.nn.Identity(), "test")
    assert (scores["right"], scores["wrong"]) == (1.0, 0.5)
    assert (scores["accuracy"], scores["worst"]) == (0.75, 0.5)


def test_methods_that_learn_get_few_training_examples_and_adamerging_gets_no_labels(script: Script) -> None:
    learned, suites, part = script("scoreboard_learned"), script("suites"), headed(script, torch.eye(2, 4))
    joint = suites.JointTask("joint", {"a": part, "b": part}, "accuracy")
    count = learned.EVIDENCE_EXAMPLES
    few = learned.training_part(part)
    assert sum(len(labels) for _, labels in few.given) == count
    batches = learned.joint_training_part(joint).given
    assert [name for name, _ in batches] == ["a", "b"] * 5, "batches of 30 in turn, the last cut"
    assert sum(len(labels) for _, (_, labels) in batches) == 2 * count
    inputs = learned.validation_inputs(part)
    assert sum(len(seen) for seen, _ in inputs.given) == 20, "all of the validation data"
    assert all(not labels.any() for _, labels in inputs.given)
    network, batch = torch.nn.Identity(), inputs.given[0]
    head = torch.nn.functional.normalize(batch[0], dim=-1) @ part.head.T
    assert torch.equal(inputs.logits(network, batch), head), "AdaMerging needs predictions, not features"


def headed(script: Script, head: torch.Tensor) -> Any:
    """Return a task of 300 training, 20 validation and 20 test examples with four features."""
    from weightspace.tasks import Examples

    def load() -> dict[str, Examples]:
        sizes = {"train": 300, "validation": 20, "test": 20}
        return {split: Examples(torch.rand(size, 4), torch.ones(size).long()) for split, size in sizes.items()}

    return script("suites").HeadedTask("part", torch.nn.Identity, load, batch_size=32, head=head)


def test_every_method_that_learns_says_from_which_data(script: Script) -> None:
    learned, settings = script("scoreboard_learned"), script("merge_settings")
    assert list(learned.METHODS) == list(learned._PLACES) == list(settings.LEARNED)
    assert set(settings.LEARNED) == set(LEARNED)
    assert len({learned.code_of(label) for label in LEARNED}) == len(LEARNED), "each has a file of its own"


def test_the_texts_of_the_characters_suite_share_nothing_between_splits(script: Script) -> None:
    suite = script("suite_characters")
    texts = [f"text {number} " * 40 for number in range(40)]
    splits = suite.splits_of(lambda: texts, 1, 10, 10)
    lines = {split: set(_text(suite, found).split("\n")) for split, found in splits.items()}
    assert not lines["train"] & lines["test"]
    assert not lines["validation"] & lines["test"]
    assert {split: len(found) for split, found in splits.items() if split != "train"} == {"validation": 10, "test": 10}


def _text(suite: ModuleType, sequences: torch.Tensor) -> str:
    """Return the whole lines of sequences: without the first and the last one, which may be cut."""
    joined = "".join(suite.CHARACTERS[at] for row in sequences.tolist() for at in row[:-1])
    return "\n".join(joined.split("\n")[1:-1])


def test_code_has_no_docstrings_and_docstrings_have_no_code(script: Script) -> None:
    suite = script("suite_characters")
    place = suite.MODULES.index("bisect")
    code, docstrings = suite.code()[place], suite.docstrings()[place]
    assert "Bisection algorithms" in docstrings
    assert "Bisection algorithms" not in code
    assert "def insort_right" in code
    assert "def insort_right" not in docstrings


def made_up() -> list[dict[str, Any]]:
    """Return rows of two suites and two seeds in which the search beats tuned task arithmetic in one suite."""
    rows = []
    better = {
        "task_arithmetic tuned": 2,
        "task_arithmetic default": 1,
        "ties default": 3,
        "ties tuned": 4,
        "search search": 5,
    }
    for suite in ("images", "characters"):  # whose smaller losses are better: the reverse order
        for seed in (1, 2):
            for line, rank in {**better, "only a reference": 0, "only b reference": 6}.items():
                label, _, settings = line.rpartition(" ")
                scores = {"loss": rank / 10, "accuracy": rank / 10}
                found = {"validation": scores, "test": scores}
                rows.append({"suite": suite, "seed": seed, "label": label, "settings": settings, "scores": found})
    rows.append({"suite": "images", "seed": 1, "label": "slerp", "settings": "default", "left out": "merges two"})
    return rows


def test_a_search_is_said_to_win_only_where_its_test_score_is_better(script: Script) -> None:
    table = script("scoreboard_table")
    board = table.board_of(made_up())
    said = table.answers(board)
    assert "search: above tuned task arithmetic in the mean of 1 of 2 suites" in said
    assert "search − tuned task arithmetic, images, test: +30.0, +30.0 % (higher is better)" in said
    assert "search − tuned task arithmetic, characters, test: -0.300, -0.300 nats (higher is better)" in said
    outcome = "holds in images (+20.0 %); does NOT hold in characters (-0.200 nats)"
    assert f"`ties` above `task_arithmetic` (Yadav et al. 2023): {outcome}" in table.orders(board)
    assert board.ranks("tuned").means == {"task_arithmetic": 1.5, "ties": 1.5}
    lines = table.table(board)
    assert lines[0].count("|") == lines[1].count("|") == lines[3].count("|")
    assert "| best single fine-tune | 0.000 ± 0.000 | – | 60.0 ± 0.0 | – | – | – |" in lines
    assert "| best trial of all methods | – | 0.100 ± 0.000 | – | 40.0 ± 0.0 | – | – |" in lines


def test_two_methods_are_compared_tuned_or_both_at_their_defaults(script: Script) -> None:
    table = script("scoreboard_table")
    rows = made_up()
    extra = [{**row, "label": "adamerging"} for row in rows if row["label"] == "ties" and row["settings"] == "default"]
    board = table.board_of([*rows, *extra])
    assert board.mean_gain("ties", "task_arithmetic", "images") == pytest.approx(0.2)  # .4 and .2
    assert board.mean_gain("adamerging", "task_arithmetic", "images") == pytest.approx(0.2)  # .3 and .1
    assert board.mean_gain("adamerging", "task_arithmetic", "characters") == pytest.approx(-0.2)
    (said,) = [line for line in table.orders(board) if "adamerging" in line]
    assert said.startswith("`adamerging` above `task_arithmetic` (Yang et al. 2024), both at their defaults: holds in")


def test_the_verdict_names_the_methods_that_differ_from_the_best(script: Script) -> None:
    ranks, verdict = script("ranks").ranks_of, script("scoreboard_table").verdict
    blocks = 40
    said = verdict(ranks({"fair": [2.0] * blocks, "good": [3.0] * blocks, "poor": [1.0] * blocks}), "tuned")
    assert said.endswith("different from the best rank, that of `good`: `fair`, `poor`")
    said = verdict(ranks({"a": [2.0, 1.0], "b": [1.0, 2.0], "c": [1.5, 1.5]}), "tuned")
    assert said.endswith("different from the best rank, that of `a`: none")


def test_a_method_without_rows_in_some_block_has_no_rank(script: Script) -> None:
    table = script("scoreboard_table")
    rows = made_up()
    extra = next(row for row in rows if row["label"] == "ties")
    board = table.board_of([*rows, {**extra, "label": "della"}])
    assert set(board.ranks("default").means) == {"task_arithmetic", "ties"}


def test_the_page_gets_the_results_between_its_marks(script: Script, tmp_path: Path) -> None:
    table = script("scoreboard_table")
    path = tmp_path / "page.md"
    path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):
        table.write_page(path, table.board_of(made_up()), ["an answer"])
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text
    assert text.count("- an answer") == 1
    assert "| `slerp` | merges two |" in text


def test_the_page_says_what_the_kept_results_say(script: Script) -> None:
    page = (ANALYSES.parent / "docs" / "pages" / "scoreboard.md").read_text(encoding="utf-8")
    path = ANALYSES / "results" / "scoreboard.json"
    if not path.is_file():
        assert "No complete run is kept yet." in page
        return
    content = json.loads(path.read_text())
    assert all(line in page for line in content["table"])
    assert all(line in page for line in content["answers"])


LEARNED = ("regmean_plusplus", "least_squares", "localize_and_stitch, learned masks", "learned_soup", "adamerging")
CHOSEN = ";".join(("task_arithmetic;linear;regmean;task_arithmetic, then subspace_boosting;slerp", *LEARNED))


@pytest.fixture(scope="module")
def run(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Return a function that runs the script on the smallest suite, with a cache that all tests share."""
    rows, settings, learned = (script(name) for name in ("scoreboard_rows", "merge_settings", "scoreboard_learned"))
    folder = tmp_path_factory.mktemp("scoreboard")

    def invoke(*options: str) -> tuple[str, Any, Path]:
        arguments = ["--small", "--suites", "characters", "--first-seed", "0", "--seeds", "1", "--workers", "1"]
        command = script("scoreboard").main
        result = CliRunner().invoke(
            command,
            [*arguments, "--methods", CHOSEN, "--cache", str(folder / "cache"), "--output", str(folder), *options],
            catch_exceptions=False,
        )
        path = folder / "results" / "scoreboard.json"
        return result.output, json.loads(path.read_text()) if path.is_file() else None, folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "SEARCH_TRIALS", 3)
        patch.setattr(learned, "EVIDENCE_EXAMPLES", 16)
        patch.setattr(learned, "ADAMERGING", replace(learned.ADAMERGING, steps=3))
        patch.setattr(settings, "SUMS", (0.3, 1.0))
        patch.setattr(
            settings, "SPACES", {"task_arithmetic": {"lambda": (0.3, 1.0)}, "regmean": {"reduce": (0.5, 0.9)}}
        )
        yield invoke


def test_a_shrunk_suite_gives_the_table_the_answers_and_the_picture(run: Callable[..., Any]) -> None:
    printed, content, folder = run()
    assert "| `task_arithmetic` |" in printed
    assert all(f"| `{label}` (learned) |" in printed for label in LEARNED)
    assert "slerp is left out: merges one model with its base" in printed
    assert (folder / "figures" / "scoreboard.png").stat().st_size > 10_000
    rows = {(row["label"], row["settings"], row["seed"]): row for row in content["rows"] if "scores" in row}
    default, tuned = (rows["task_arithmetic", kind, 0]["scores"] for kind in ("default", "tuned"))
    assert tuned["validation"]["loss"] <= default["validation"]["loss"], "λ = .3 is among the settings"
    parts = ("verbs", "examples", "docstrings", "code")
    assert tuned["test"]["loss"] == pytest.approx(sum(tuned["test"][part] for part in parts) / len(parts))
    assert any("above tuned task arithmetic in the mean of" in line for line in content["answers"])


def test_what_is_kept_is_not_measured_again(
    run: Callable[..., Any], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before, folder = run()
    (row,) = (folder / "cache" / "rows").rglob("regmean-tuned-*.json")
    row.unlink()  # as after a kill between the last trial and the row
    scored, searched = [], []
    validation, search = script("scoreboard_rows").Scorer._validation, ws.search
    monkeypatch.setattr(
        script("scoreboard_rows").Scorer, "_validation", lambda *args: scored.append(1) or validation(*args)
    )
    monkeypatch.setattr(ws, "search", lambda *args, **options: searched.append(1) or search(*args, **options))
    _, kept, _ = run("--kept")
    assert not searched
    assert len(kept["rows"]) == len(before["rows"]) - 1
    _, after, _ = run()
    assert len(searched) == 1, "only the row that was gone"
    assert not scored, "the scores of its trials were kept"
    assert _scores(after) == _scores(before)


def _scores(content: Mapping[str, Any]) -> dict[tuple[str, str, int], Any]:
    return {(row["label"], row["settings"], row["seed"]): row["scores"] for row in content["rows"] if "scores" in row}
