"""Averages of a run from files to a file, and the scores of their windows."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.connectivity import reset_statistics
from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.plots import draw_windows
from weightspace.progress import Progress
from weightspace.runs import average_run, find_checkpoints, schedule_weights, score_windows
from weightspace.searching import CommandScore
from weightspace.tasks import Task

STEPS = (10, 20, 30, 40)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four checkpoints of random weights, the working directory above it."""
    monkeypatch.chdir(tmp_path)
    for step in STEPS:
        generator = torch.Generator().manual_seed(step)
        state = {"w": torch.randn(6, 4, generator=generator).bfloat16(), "steps": torch.tensor(step)}
        ws.save_checkpoint(state, f"run/step_{step}.safetensors")
    return Path("run")


def average(words: str) -> Result:
    return CliRunner().invoke(cli.main, ["average", *words.split()], catch_exceptions=False)


@pytest.mark.parametrize("schedule", ["uniform", "ema:0.9", "wsm:linear", "wsm:cosine", "wsm:1-sqrt"])
def test_an_average_is_the_merge_with_the_same_weights(schedule: str, run: Path) -> None:
    average_run(find_checkpoints(run, last=3), "average.safetensors", schedule=schedule)
    weights = schedule_weights(schedule, 3)
    ws.merge_files([f"run/step_{step}.safetensors" for step in STEPS[1:]], "merged.safetensors", weights=weights)
    assert Path("average.safetensors").read_bytes() == Path("merged.safetensors").read_bytes()
    assert int(ws.load_checkpoint("average.safetensors")["steps"]) == 40


def test_batchnorm_statistics_are_computed_anew(tmp_path: Path) -> None:
    task = ws.load_task("digits-cnn")
    states = [ws.train(task, seed, epochs=1) for seed in (0, 1)]
    for step, state in enumerate(states):
        ws.save_checkpoint(state, tmp_path / "run" / f"epoch_{step}.pt")
    average_run(find_checkpoints(tmp_path / "run"), tmp_path / "out.safetensors", task=task)
    expected = reset_statistics(task, ws.merge(states))
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_windows_are_scored_by_a_function_of_the_path(run: Path) -> None:
    seen: list[torch.Tensor] = []
    events: list[Progress] = []

    def score(path: Path) -> float:
        seen.append(ws.load_checkpoint(path)["w"].clone())
        return (3.0, 1.0, 1.0, 2.0)[len(seen) - 1]

    found = score_windows(find_checkpoints(run), score, mode="min", on_progress=events.append)
    assert (found.scores, found.best, found.mode) == ({"score": (3.0, 1.0, 1.0, 2.0)}, 2, "min")
    assert (found.first_steps, found.last_step) == ((40, 30, 20, 10), 40)
    states = [ws.load_checkpoint(f"run/step_{step}.safetensors") for step in STEPS]
    for size, tensor in enumerate(seen, start=1):
        assert torch.equal(tensor, ws.merge(states[-size:])["w"])
    assert [(event.stage, event.index, event.total, event.value) for event in events][1] == ("window", 2, 4, 1.0)


def test_windows_are_scored_by_a_task_and_kept(
    digits_mlp: Task, mlp_states: Sequence[ws.StateDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    for step, state in enumerate(mlp_states):
        ws.save_checkpoint(state, tmp_path / f"epoch_{step}.safetensors")
    found = score_windows(find_checkpoints(tmp_path), digits_mlp)
    assert list(found.scores) == ["validation", "test"]
    network = digits_mlp.network()
    network.load_state_dict(ws.merge(list(mlp_states)))
    assert found.scores["test"][1] == digits_mlp.score(network, "test")["accuracy"]
    assert found.best == 1
    monkeypatch.setattr("weightspace.soups.evaluation._score", None)  # scoring once more would fail
    assert score_windows(find_checkpoints(tmp_path), digits_mlp) == found


def test_weights_of_a_file_fit_one_window_only(run: Path) -> None:
    Path("weights.txt").write_text("1\n1\n1\n1\n")
    checkpoints = find_checkpoints(run)
    average_run(checkpoints, "out.safetensors", schedule="weights.txt")
    with pytest.raises(WeightspaceError, match=r"weights\.txt are for one number of checkpoints"):
        score_windows(checkpoints, lambda path: 1.0, schedule="weights.txt")
    with pytest.raises(WeightspaceError, match="expected a finite number"):
        score_windows(checkpoints, lambda path: float("nan"))
    for call in (lambda: average_run([], "x.pt"), lambda: score_windows([], lambda path: 1.0)):
        with pytest.raises(WeightspaceError, match="Expected at least one checkpoint"):
            call()


@pytest.mark.usefixtures("run")
def test_the_command_scores_draws_and_writes_the_best() -> None:
    script = "import sys, pathlib; print('score', 2 - abs(len(pathlib.Path(sys.argv[1]).name) - 13))"
    Path("score.py").write_text(script)
    words = ["run", "--best", "--report", "w.png", "--report", "w.json", "-o", "out.safetensors", "--json"]
    words += ["--mode", "max", "--score", "python score.py {model}"]
    for _ in range(2):  # a repeated call replaces its earlier results
        result = CliRunner().invoke(cli.main, ["average", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["windows"]["best"] == 2  # the names of averages, 2.safetensors, have 13 characters
    assert (report["steps"], report["weights"]) == ([30, 40], [0.5, 0.5])
    assert report["files"] == ["out.safetensors", "w.png", "w.json"]
    assert json.loads(Path("w.json").read_text())["scores"] == {"score": [-4.0, 2.0, 2.0, 2.0]}
    assert Path("w.png").read_bytes().startswith(b"\x89PNG")


def test_a_score_whose_direction_is_unknown_is_refused(run: Path) -> None:
    checkpoints = find_checkpoints(run)
    with pytest.raises(WeightspaceError, match=r"measure-loss\.sh is the name of a score for which lower is better"):
        score_windows(checkpoints, CommandScore("measure-loss.sh {model}"))
    Path("score.py").write_text("print(1.0)")
    with pytest.warns(WeightspaceWarning, match="highest score of the command counts as the best. Give --mode min"):
        assert score_windows(checkpoints, CommandScore(f"{sys.executable} score.py {{model}}")).mode == "max"

    def validation_loss(path: Path) -> float:
        return 0.0

    with pytest.raises(WeightspaceError, match="the name of a score for which lower is better"):
        score_windows(checkpoints, validation_loss)
    with pytest.raises(WeightspaceError, match="mode"):
        score_windows(checkpoints, lambda path: 0.0, mode="lowest")  # pyright: ignore[reportArgumentType]


def test_the_picture_says_what_is_drawn(run: Path) -> None:
    windows = score_windows(find_checkpoints(run), lambda path: float(len(path.name)))
    draw_windows(windows, "w.svg")
    text = Path("w.svg").read_text()
    for words in ("checkpoints averaged, back from step 40", "score", "best: the last alone", "uniform weights"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --best -o x.pt", "--best has no effect without --task or --score"),
        ("run --report w.png -o x.pt", "--report has no effect without --task or --score"),
        ("run --score date -o x.pt", "--score needs {model} in place of the checkpoint; found 'date'"),
        ("run --task digits-mlp --score date{model} -o x.pt", "Give one of the two"),
        ("run --score none{model} --mode min -o x.pt", "cannot be run: No such file or directory"),
        ("run --score loss{model} --best -o x.pt", "a score for which lower is better, but without a mode"),
        ("run --window 3 -o x.pt", "--window must be two steps such as 1000:2000"),
        ("run --window 9:3 -o x.pt", "the first step is after the last one"),
        ("run --last 9 -o x.pt", "Found 4 checkpoints that fit, expected at least 9"),
        ("run --last 2 -o run/step_10.safetensors", "no record of having made it"),
        (
            "run --last 2 -o run/step_10.safetensors --force",
            "would replace run/step_10.safetensors, which it is made from",
        ),
        ("run -o run/step_99.safetensors", "run/step_99.safetensors would be a checkpoint of the run in its folder"),
        ("run -o run/average-4.safetensors", "Choose another folder, or a name without a number"),
        ("run -o run", "run exists and is not a checkpoint"),
        ("run --schedule wsm:cos -o x.pt", "Did you mean 'wsm:cosine'?"),
    ],
)
@pytest.mark.usefixtures("run")
def test_mistakes_are_one_line_and_write_nothing(words: str, message: str) -> None:
    result = average(words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["run"]


@pytest.mark.usefixtures("run")
def test_a_dry_run_scores_and_writes_nothing() -> None:
    result = average("run --last 2 --score none{model} --mode min --best -o out.safetensors --dry-run")
    assert result.exit_code == 0, result.output
    assert "2 checkpoints, from step 30 to 40, weights 0.5 each" in result.stdout
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("score", "line"),
    [
        ("0", "best: the last checkpoint alone (step 40)"),
        ("len(sys.argv[1])", "best: the last 2 checkpoints (from step 30)"),
    ],
)
@pytest.mark.usefixtures("run")
def test_the_best_number_of_checkpoints_is_said_once(score: str, line: str) -> None:
    Path("score.py").write_text(f"import sys; print('score', {score} if '4.' not in sys.argv[1] else -1)")
    words = ["run", "--last", "2", "--best", "--mode", "max", "-o", "out.safetensors"]
    result = CliRunner().invoke(cli.main, ["average", *words, "--score", "python score.py {model}"])
    assert result.exit_code == 0, result.output
    assert line in result.stdout
    assert "nothing to average" not in result.stdout


def test_averaged_running_statistics_and_single_checkpoints_are_named(tmp_path: Path) -> None:
    for step in (1, 2):
        ws.save_checkpoint(torch.nn.BatchNorm1d(3).state_dict(), tmp_path / f"run/step_{step}.safetensors")
    result = average(f"{tmp_path}/run -o {tmp_path}/out.safetensors")
    assert "Warning: The running statistics of 1 BatchNorm layer are averaged" in result.stderr
    result = average(f"{tmp_path}/run --every 9 -o {tmp_path}/one.safetensors")
    assert "running statistics" not in result.stderr
    assert "1 checkpoint, step 2: there is nothing to average it with" in result.stdout


def test_a_folder_without_weights_is_left_out_with_a_warning(run: Path) -> None:
    (run / "step_50").mkdir()
    with pytest.warns(WeightspaceWarning, match="no weights in it: step_50"):
        assert [checkpoint.step for checkpoint in find_checkpoints(run)] == list(STEPS)
    result = average("run -o out.safetensors")
    assert result.exit_code == 0
    assert result.stderr.count("no weights in it") == 1


def test_nan_and_lacking_tensors_are_accepted_where_asked_for(run: Path) -> None:
    ws.save_checkpoint({"w": torch.full((6, 4), torch.nan).bfloat16()}, "run/step_50.safetensors")
    assert "--lenient" in average("run -o out.safetensors").stderr
    assert "--allow-nonfinite" in average("run -o out.safetensors --lenient").stderr
    assert average("run -o out.safetensors --lenient --allow-nonfinite").exit_code == 0
