"""``weightspace soup`` and ``weightspace ensemble``: tables, files, and what is said of a soup that is worse."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.soups import SoupReport
from weightspace.user_code import load_object

KITCHEN = Path(__file__).parents[1] / "soups" / "kitchen.py"
TASK = ("--task", f"{KITCHEN}:TASK")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of four fine-tunes in the working directory; base.pt is the model before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    task = ws.load_task(TASK[1])
    kitchen: Any = sys.modules[load_object(f"{KITCHEN}:network").__module__]
    base, states = kitchen.fine_tunes(task, 4)
    ws.save_checkpoint(base, "base.pt")
    return [str(path) for path in kitchen.saved(states, Path("runs"))]


def test_the_greedy_soup_is_written_with_its_table_and_its_candidates(models: list[str]) -> None:
    result = run("soup", *models, *TASK, "-o", "soup.safetensors")
    assert result.exit_code == 0, result.output
    expected = ws.greedy_soup(models, ws.load_task(TASK[1]))
    found = ws.load_checkpoint("soup.safetensors")
    assert all(found[name].equal(tensor) for name, tensor in expected.state.items())
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["recipe", "networks", "validation", "accuracy", "test", "accuracy"]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["best single", "greedy", "best single on test"]
    assert f"greedy: {len(expected.ingredients)} of 4 models, in this order: runs/" in result.stdout
    candidates = [line for line in result.stderr.splitlines() if line[:1].isdigit()]
    assert len(candidates) == 7  # a line each, since this is no terminal
    assert all(word in result.stderr for word in ("1/7  runs/000.safetensors  1  0.", "+ runs/", "ed"))
    described = ws.checkpoints.load_metadata("soup.safetensors")  # type: ignore[attr-defined]
    assert described["method"] == "greedy-soup"
    assert json.loads(described["parameters"])["ingredients"] == list(expected.ingredients)


def test_all_recipes_are_compared_saved_and_drawn(models: list[str]) -> None:
    options = ("--compare", "--recipe", "learned", "--per", "layer", "-o", "soup.pt", "--json")
    result = run("soup", *models, *TASK, *options, "--report", "soups.json", "--report", "soups.png")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = ["best single", "uniform", "greedy", "learned", "ensemble", "best single on test"]
    assert [row["name"] for row in found["rows"]] == names
    assert [row["models"] for row in found["rows"]] == [1, 1, 1, 1, 4, 1]
    rows = {row.name: row for row in SoupReport.load("soups.json").rows}
    assert rows["greedy"].scores["validation"]["accuracy"] >= rows["best single"].scores["validation"]["accuracy"]
    assert rows["best single on test"].scores["test"]["accuracy"] >= rows["best single"].scores["test"]["accuracy"]
    assert Path("soups.png").read_bytes()[:4] == b"\x89PNG"
    task = ws.load_task(TASK[1])
    module = task.network()
    module.load_state_dict(ws.load_checkpoint("soup.pt"))
    assert task.score(module)["accuracy"] == rows["learned"].scores["test"]["accuracy"]


def test_where_a_soup_is_worse_than_the_best_model_a_line_says_so(models: list[str]) -> None:
    report = json.loads(run("soup", *models, *TASK, "--recipe", "uniform", "-o", "u.pt", "--json").stdout)
    best, uniform = (row["scores"]["test"]["accuracy"] for row in report["rows"][:2])
    said = f"on test the soup is worse than the best single model: {uniform:.4f} versus {best:.4f}"
    assert (said in run("soup", *models, *TASK, "--recipe", "uniform", "-o", "u.pt").stdout) == (uniform < best)
    assert uniform < best  # these fine-tunes are such
    assert report["worse_than_single"]["test"] == [uniform, best]


@pytest.mark.parametrize("recipe", ["uniform", "learned"])
def test_a_soup_that_is_worse_on_validation_says_why_and_what_to_do(models: list[str], recipe: str) -> None:
    task = ws.load_task(TASK[1])
    ws.save_checkpoint(ws.train(task, seed=1), "apart.pt")
    arguments = ("soup", models[0], "apart.pt", *TASK, "--recipe", recipe, "-o", "soup.pt")
    found = json.loads(run(*arguments, "--json").stdout)
    ours, best = found["worse_than_single"]["validation"]
    assert ours < best
    assert found["advice"].endswith(
        "--recipe greedy does, and on validation it is never worse than the best single model"
    )
    assert ("learned coefficients lower the loss on validation, not accuracy" in found["advice"]) == (
        recipe == "learned"
    )
    assert found["advice"] in run(*arguments).stdout.splitlines()


def test_a_soup_that_is_not_worse_has_no_advice(models: list[str]) -> None:
    found = json.loads(run("soup", models[0], *TASK, "--recipe", "greedy", "-o", "g.pt", "--json").stdout)
    assert (found["worse_than_single"], found["advice"]) == ({}, None)


def test_the_uniform_soup_needs_no_task(models: list[str]) -> None:
    assert run("soup", *models, "--recipe", "uniform", "-o", "soup.pt").stdout == "soup.pt\n"
    found, expected = ws.load_checkpoint("soup.pt"), ws.uniform_soup(models)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_the_line_of_wise_ft_is_scored_and_its_best_written(models: list[str]) -> None:
    arguments = ("soup", "base.pt", models[0], *TASK, "--recipe", "wise-ft", "--positions", "0,.5,1", "-o", "w.pt")
    found = json.loads(run(*arguments, "--json").stdout)
    line = ws.wise_ft("base.pt", models[0], ws.load_task(TASK[1]), (0, 0.5, 1))
    assert found["position"] == line.position
    assert found["scores"]["test"] == [dict(scores) for scores in line.scores["test"]]
    assert f"{line.position:g} ←" in run(*arguments).stdout


def test_the_ensemble_is_shown_with_the_soup_and_pairs_are_predicted(models: list[str]) -> None:
    result = run("ensemble", *models, *TASK, "--pairs", "4", "-o", "pairs.png", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["name"] for row in found["rows"]] == ["best single", "uniform", "ensemble", "best single on test"]
    assert len(found["pairs"]) == found["agreement"]["pairs"] == 4
    assert Path("pairs.png").read_bytes()[:4] == b"\x89PNG"
    text = run("ensemble", *models, *TASK, "--pairs", "9").stdout
    assert "of 6 pairs" in text
    assert "soup − ensemble" in text


def test_an_error_is_minimised_and_shown_as_it_is(models: list[str]) -> None:
    error = ("--task", f"{KITCHEN}:ERROR", "-o", "soup.pt")
    plain = [str(path) for path in _plain_models()]
    result = run("soup", *plain, *error)
    assert result.exit_code == 0, result.output
    table = [line.split() for line in result.stdout.splitlines()[1:4]]
    best, greedy, _ = (float(line[-2]) for line in table)
    assert 0 <= greedy <= best
    shown = [line.split("  ")[3] for line in result.stderr.splitlines() if line[:1].isdigit()]
    assert min(map(float, shown)) >= 0  # the error itself, not its negative
    again = run("soup", *plain, "--task", f"{KITCHEN}:QUALITY", "--mode", "min", "-o", "again.pt")
    assert again.exit_code == 0, again.output
    assert equal_files("soup.pt", "again.pt")
    positions = run("soup", *plain[:2], *error, "--recipe", "wise-ft", "--positions", "0,1").stderr
    assert "-0." not in positions
    assert run("ensemble", *plain, "--task", f"{KITCHEN}:QUALITY", "--mode", "min").exit_code == 0


def _plain_models() -> list[Path]:
    kitchen: Any = sys.modules[load_object(f"{KITCHEN}:network").__module__]
    return kitchen.saved(kitchen.fine_tunes(kitchen.PLAIN, 3)[1], Path("plain"))


def equal_files(a: str, b: str) -> bool:
    first, second = ws.load_checkpoint(a), ws.load_checkpoint(b)
    return all(first[name].equal(second[name]) for name in first)


def test_the_table_counts_ingredients_and_says_what_is_far_below(models: list[str]) -> None:
    state = ws.load_checkpoint(models[0])
    opposite = {
        name: -tensor if tensor.is_floating_point() and "running" not in name else tensor
        for name, tensor in state.items()
    }
    ws.save_checkpoint(opposite, "opposite.pt")
    result = run("soup", *models, "opposite.pt", *TASK, "--compare", "-o", "soup.pt", "--report", "soups.svg")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0]: line.split() for line in result.stdout.splitlines()}
    assert rows["uniform"][1] == rows["ensemble"][1] == "5"
    assert rows["best single"][2] == rows["best single on test"][4] == "1"
    assert "the ensemble runs all 5 networks, a soup only one" in result.stdout
    assert "best single on test: selected on the test data, for comparison only" in result.stdout


def test_a_soup_of_networks_from_other_basins_is_reported_as_far_below(models: list[str]) -> None:
    task = ws.load_task(TASK[1])
    for seed in (1, 2):
        ws.save_checkpoint(ws.train(task, seed=seed), f"apart{seed}.pt")
    result = run("soup", "apart1.pt", "apart2.pt", *TASK, "--recipe", "uniform", "-o", "soup.pt")
    report = json.loads(
        run("soup", "apart1.pt", "apart2.pt", *TASK, "--recipe", "uniform", "-o", "s.pt", "--json").stdout
    )
    best, uniform, _ = (row["scores"]["validation"]["accuracy"] for row in report["rows"])
    assert uniform < 0.9 * best
    assert (
        f"uniform is far worse than every single model on validation: {uniform:.4f}; the best has {best:.4f}"
        in result.stdout
    )


def test_model_stock_with_and_without_a_task(models: list[str]) -> None:
    options = ("--recipe", "model_stock", "--base", "base.pt", "-o", "soup.pt")
    assert run("soup", *models, *options).stdout == "soup.pt\n"
    expected = ws.merge(
        [ws.load_checkpoint(path) for path in models], "model_stock", base=ws.load_checkpoint("base.pt")
    )
    found = ws.load_checkpoint("soup.pt")
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert json.loads(ws.checkpoints.load_metadata("soup.pt")["parameters"]) == {"base": "base.pt"}  # type: ignore[attr-defined]
    with_task = run("soup", *models, *options, *TASK)
    assert with_task.exit_code == 0, with_task.output
    assert "model_stock" in with_task.stdout


def test_the_greedy_soup_with_replacement(models: list[str]) -> None:
    result = run("soup", *models, *TASK, "--replacement", "-o", "soup.pt")
    assert result.exit_code == 0, result.output
    expected = ws.greedy_soup(models, ws.load_task(TASK[1]), replacement=True)
    found = ws.load_checkpoint("soup.pt")
    assert all(found[name].equal(tensor) for name, tensor in expected.state.items())


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no task": (("soup", "a.pt", "-o", "s.pt"), "--recipe greedy needs --task"),
    "report without a task": (
        ("soup", "a.pt", "--recipe", "uniform", "-o", "s.pt", "--report", "r.png"),
        "need --task",
    ),
    "report of another kind": (("soup", "a.pt", *TASK, "-o", "s.pt", "--report", "r.xls"), "r.xls is neither an image"),
    "missing checkpoint": (("soup", "a.pt", *TASK, "-o", "s.pt"), "a.pt does not exist"),
    "line of one": (("soup", "a.pt", *TASK, "--recipe", "wise-ft", "-o", "s.pt"), "found 1 checkpoints"),
    "objective of no known direction": (("soup", "base.pt", "--task", f"{KITCHEN}:QUALITY", "-o", "s.pt"), "--mode on"),
    "ensemble of no known direction": (("ensemble", "base.pt", "base.pt", "--task", f"{KITCHEN}:QUALITY"), "--mode on"),
    "stock without a base": (("soup", "a.pt", *TASK, "--recipe", "model_stock", "-o", "s.pt"), "Give --base"),
    "base of a greedy soup": (("soup", "a.pt", *TASK, "--base", "c.pt", "-o", "s.pt"), "doesn't use --base"),
    "replacement in a mean": (
        ("soup", "a.pt", *TASK, "--recipe", "uniform", "--replacement", "-o", "s.pt"),
        "--replacement has no effect with --recipe uniform",
    ),
    "base of a line": (
        ("soup", "a.pt", "b.pt", *TASK, "--recipe", "wise-ft", "--base", "c.pt", "-o", "s.pt"),
        "not as --base",
    ),
    "ensemble of one": (("ensemble", "a.pt", *TASK), "at least two networks; found 1"),
    "picture without pairs": (("ensemble", "a.pt", "b.pt", *TASK, "-o", "p.png"), "give their number with --pairs"),
    "picture of another kind": (
        ("ensemble", "a.pt", "b.pt", *TASK, "--pairs", "1", "-o", "p.xls"),
        "isn't an image file",
    ),
    "ray without Ray": (("soup", "a.pt", *TASK, "-o", "s.pt", "--ray-address", "x"), "not 'ray'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_status_2(mistake: str, models: list[str]) -> None:
    arguments, message = MISTAKES[mistake]
    if mistake == "ray without Ray":
        Path("a.pt").write_bytes(Path("base.pt").read_bytes())
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert not Path("s.pt").exists()
