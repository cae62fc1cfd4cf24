"""``weightspace search``: the table, the files, mistakes, and kills that lose no score."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from weightspace.cli.search import _shown  # pyright: ignore[reportPrivateUsage]

import weightspace as ws
from weightspace import cli
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.searching import CommandScore

RECIPE = """
merge_method: task_arithmetic
base_model: base.safetensors
models:
- {model: a.safetensors, parameters: {weight: {search: [0, 1]}}}
- {model: b.safetensors, parameters: {weight: {search: [0, 1]}}}
"""
#: Prints the sum of a tensor, and adds it to a log; from the third one on, waits as long as there is a file "hold".
SCORE = """
import array, json, os, struct, sys, time
content = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", content[:8])[0]
start, stop = json.loads(content[8:8 + size])["w"]["data_offsets"]
print("loss", value := sum(array.array("f", content[8 + size + start:8 + size + stop])))
with open("log", "a+") as log:
    log.write(f"{value}\\n")
    log.seek(0)
    scored = len(log.readlines())
while scored >= 3 and os.path.exists("hold"):
    time.sleep(0.02)
"""


@pytest.fixture
def folder(tiny: Path) -> Path:
    Path("recipe.yml").write_text(RECIPE)
    Path("score.py").write_text(SCORE)
    return tiny


def search(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["search", *words], catch_exceptions=False)


BY_COMMAND = ("--score", f"{sys.executable} score.py {{model}}", "--mode", "min", "--no-references")


def test_the_best_merge_is_written_with_its_recipe(folder: Path) -> None:
    done = search("recipe.yml", *BY_COMMAND, "--engine", "grid", "--trials", "9", "-o", "best.safetensors",
                  "--report", "best.yml", "--report", "trials.png", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    scores = [trial["scores"]["score"] for trial in told["trials"]]
    assert len(scores) == 9
    assert told["best"] == scores.index(min(scores))
    assert told["files"] == ["best.safetensors", "best.yml", "trials.png"]
    for _ in range(2):
        repeated = search("recipe.yml", *BY_COMMAND, "--engine", "grid", "--trials", "9", "-o", "best.safetensors",
                          "--report", "best.yml", "--report", "trials.json")  # fmt: skip
        assert repeated.exit_code == 0, repeated.output
    Path("mine.yml").write_text(RECIPE)
    refused = search("recipe.yml", *BY_COMMAND, "-o", "best.safetensors", "--report", "mine.yml")
    assert "already exists" in refused.stderr
    ws.merge_files("best.yml", "again.safetensors")
    found, again = ws.load_checkpoint("best.safetensors"), ws.load_checkpoint("again.safetensors")
    assert all(found[name].equal(again[name]) for name in again)
    assert float(found["w"].sum()) == pytest.approx(min(scores), abs=1e-4)


def test_a_file_of_places_and_the_table(folder: Path) -> None:
    Path("plain.yml").write_text(RECIPE.replace("{search: [0, 1]}", "0.5"))
    Path("space.yml").write_text("models[0].parameters.weight: {search: [0, 1]}")
    done = search("plain.yml", "--space", "space.yml", *BY_COMMAND[:-1], "--engine", "grid", "--trials", "3",
                  "-o", "best")  # fmt: skip
    assert done.exit_code == 0, done.output
    for line in ("best single model", "uniform", "task arithmetic, λ tuned", "TIES, defaults", "best of the search"):
        assert line in done.stdout
    assert "models[0].parameters.weight: " in done.stdout
    assert Path("best/model.safetensors").is_file()


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_loses_no_score(killed_by: signal.Signals, folder: Path) -> None:
    words = ["search", "recipe.yml", *BY_COMMAND, "--engine", "random", "--trials", "8", "-o", "best.safetensors"]
    command = [sys.executable, "-m", "weightspace", *words]
    Path("hold").touch()
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background inherits SIG_IGN
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=heeding)
    log = Path("log")
    while first.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.05)
    while first.poll() is None:  # Python ignores an interrupt that arrives in a destructor
        with suppress(ProcessLookupError):
            os.killpg(first.pid, killed_by)
        time.sleep(0.5)
    first.communicate()
    Path("hold").unlink()
    assert first.returncode != 0
    assert not Path("best.safetensors").exists()
    scored = len(log.read_text().splitlines())
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    values = log.read_text().splitlines()
    assert len(set(values)) == 8
    assert len(values) <= 8 + 1, scored  # the one that was being scored


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.yml"], "needs either --task or --score"),
        (["recipe.yml", "--task", "digits-mlp", "--score", "x {model}"], "needs either --task or --score"),
        (["recipe.yml", "--score", "python score.py"], "--score needs {model}"),
        (["recipe.yml", "--score", "python 'score.py {model}"], "cannot be split into words"),
        (["recipe.yml", "--score", "loss.py {model}"], "loss.py is the name of a score for which lower is better"),
        (["recipe.yml", "--score", "nosuchprogram {model}", "--mode", "max"], "nosuchprogram cannot be run"),
        (["recipe.yml", "--score", "false {model}", "--mode", "max"], "ended with status 1"),
        (["recipe.yml", "--score", "true {model}", "--mode", "max"], "expected a number at the end"),
        (["recipe.yml", "--score", "x {model}", "--halving"], "--halving has no effect without --task"),
        (["recipe.yml", "--task", "digits-mlp", "--report", "x.csv"], "is neither an image"),
        (["nosuch.yml", "--task", "digits-mlp"], "nosuch.yml"),
        (["a.safetensors", "--task", "digits-mlp"], "is not valid YAML"),
        (["recipe.yml", "--task", "digits-mlp"], "do not fit together"),
        (["recipe.yml", "--task", "digits-mlp", "--engine", "sgd"], "'sgd' is not one of|sgd"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(words: list[str], message: str, folder: Path) -> None:
    done = search(*words, "--trials", "4", "-o", "best.safetensors")
    assert done.exit_code in (1, 2)
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error")]) == 1
    assert not Path("best.safetensors").exists()


def test_the_output_is_none_of_the_inputs(folder: Path) -> None:
    for path in ("a.safetensors", "base.safetensors"):
        for force, message in (((), "no record of having made it"), (("--force",), "would replace")):
            done = search("recipe.yml", "--task", "digits-mlp", "-o", path, *force)
            assert done.exit_code != 0
            assert message in done.stderr


@pytest.mark.parametrize(
    ("printed", "score"),
    [
        ("epoch 3, loss 0.25", 0.25),
        ("epoch 3, loss nan", math.nan),
        ("step 7: -inf", -math.inf),
        ("inf 2 finance", 2.0),
        ("accuracy=0.85 of /tmp/weightspace-jx7zb/merged2.safetensors", 0.85),
        ("0.85 for step-1000, in 12s, with v2.1", 0.85),
        ("ppl: 7.25.", 7.25),
    ],
)
def test_the_last_number_is_the_score(printed: str, score: float, tmp_path: Path) -> None:
    found = CommandScore(f"{sys.executable} -c \"print('{printed}')\" {{model}}")(tmp_path)
    assert found == pytest.approx(score, nan_ok=True)


def test_digits_in_the_name_of_the_model_are_no_score(tmp_path: Path) -> None:
    score = CommandScore(f"{sys.executable} -c \"import sys; print('done', sys.argv[1])\" {{model}}")
    with pytest.raises(WeightspaceError, match="expected a number at the end"):
        score(tmp_path / "candidate-7x" / "merged2")


def test_files_in_options_of_the_command_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("score.py", "data.txt"):
        Path(name).write_text(name)
    assert CommandScore("python score.py {model} --data=data.txt").files().keys() == {"score.py", "data.txt"}


def test_halving_shows_on_how_much_of_the_data_a_candidate_was_scored() -> None:
    rows: list[Sequence[str]] = []
    _shown(rows.append, halving=True)(Progress("trial", 1, 13, 0.95, details={"share": 1 / 9}))
    _shown(rows.append, halving=False)(Progress("trial", 2, 13, 0.95, details={"share": 1.0}))
    assert [tuple(row) for row in rows] == [("1/13", "0.9500", "on 11% of the data"), ("2/13", "0.9500")]
