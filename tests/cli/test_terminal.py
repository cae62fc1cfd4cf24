"""Names from files reach a terminal escaped: they neither drive it nor begin a line of their own."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from weightspace.checkpoints import save_checkpoint
from weightspace.errors import WeightspaceWarning

#: Clears the screen, writes the clipboard, reverses the text, begins a line, and is half of a pair.
HOSTILE = "x\x1b[2J\x1b]52;c;aGk=\x07\u202e\nError: \x9b\u2028y"
SHOWN = "x\\x1b[2J\\x1b]52;c;aGk=\\x07\\u202e\\nError: \\x9b\\u2028y"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(importlib.import_module("weightspace.cli").main, [str(word) for word in arguments])


def check(result: Result, code: int = 0) -> None:
    """Check that the output shows the name, escaped, and in the line that it belongs to."""
    assert result.exit_code == code, result.output
    assert SHOWN in result.output
    odd = [line for line in result.output.split("\n") if not line.isprintable() or line.startswith("Error: \\x9b")]
    assert odd == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    weight = torch.arange(12.0).reshape(3, 4)
    for name, factor in (("a", 1.0), ("b", 1.5)):
        state = {f"{HOSTILE}.weight": factor * weight, "other.weight": weight * factor}
        save_checkpoint(state, f"{name}.safetensors", metadata={HOSTILE: HOSTILE})
    save_checkpoint({"other.weight": weight}, "c.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "inspect a.safetensors",
        "inspect a.safetensors b.safetensors",
        "inspect a.safetensors c.safetensors",
        "spectrum a.safetensors",
        "spectrum a.safetensors b.safetensors",
        "extract-lora a.safetensors b.safetensors --rank 1 -o lora",
        "merge a.safetensors c.safetensors --lenient -o out.safetensors",
    ],
)
def test_names_of_tensors_are_escaped(command: str, folder: Path) -> None:
    check(run(*command.split()))


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_are_escaped_on_terminals_too(terminal: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightspace.cli.printing.on_terminal", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "250")
    check(run("inspect", "a.safetensors"))


@pytest.mark.parametrize(
    "command",
    [
        "merge a.safetensors c.safetensors -o out.safetensors",
        "merge a.safetensors b.safetensors c.safetensors -m ties --base a.safetensors -o out.safetensors",
        "extract-lora a.safetensors c.safetensors --rank 1 -o lora",
    ],
)
def test_errors_escape_names_of_tensors(command: str, folder: Path) -> None:
    result = run(*command.split())
    check(result, code=2)
    assert len(result.output.splitlines()) == 1


def test_names_of_files_are_escaped(folder: Path) -> None:
    weird = folder / HOSTILE
    Path("a.safetensors").rename(f"{weird}.safetensors")
    check(run("inspect", f"{weird}.safetensors"))
    check(run("merge", f"{weird}.safetensors", "b.safetensors", "-o", f"{weird}-out.safetensors"))
    check(run("merge", f"{weird}.safetensors", "b.safetensors", "-o", f"{weird}-out.safetensors", "--dry-run"))
    missing = run("inspect", f"{weird}.missing")
    assert missing.exit_code == 2
    assert missing.output.rstrip("\n").isprintable()  # the lines of a message are joined
    check(run("merge", "b.safetensors", "-o", "out", "-m", HOSTILE), code=2)


def test_labels_are_escaped(folder: Path) -> None:
    Path("names.json").write_text(json.dumps([HOSTILE, "b", "c"]))
    np.save("scores.npy", np.eye(3))
    assert run("labels", "build", "--discrete", "names.json", "-o", "m.safetensors").exit_code == 0
    for command in ("predict m.safetensors scores.npy", "evaluate m.safetensors scores.npy --truth names.json"):
        result = run("labels", *command.split(), "--observed", "names.json")
        assert result.exit_code == 0, result.output
        assert all(line.isprintable() for line in result.output.split("\n"))
    check(run("labels", "predict", "m.safetensors", "scores.npy", "--observed", "names.json"))
    check(run("labels", "locus", "m.safetensors", "--observed", "names.json"))


def test_json_escapes_and_gives_the_name_back(folder: Path) -> None:
    result = run("inspect", "--json", "a.safetensors")
    assert result.output.rstrip("\n").isprintable()
    names = [tensor["name"] for tensor in json.loads(result.output)["checkpoints"][0]["tensors"]]
    assert f"{HOSTILE}.weight" in names


def test_warnings_of_the_library_are_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show = importlib.import_module("weightspace.cli")._show_warning
    show(WeightspaceWarning(HOSTILE), WeightspaceWarning)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Warning: x\\x1b[2J")
    assert lines[0].isprintable()


def test_no_command_prints_on_its_own() -> None:
    cli = Path(importlib.import_module("weightspace.cli").__file__ or "").parent
    printing = {path.name for path in cli.glob("*.py") if "click.echo(" in path.read_text()}
    assert printing == {"printing.py", "__init__.py", "match.py"}  # errors escape themselves; match lists its methods


@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "1e400", "²", "x\x1b[2J"], ids=["1", "2", "3", "4", "5"])
@pytest.mark.parametrize("option", ["--threads", "--memory", "--workers", "--shard-size", "--weights", "--seed"])
def test_numbers_that_no_option_can_have_are_a_short_line(option: str, value: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    result = run("merge", "a.safetensors", "b.safetensors", option, value, "-o", "out.safetensors")
    assert result.exit_code == 2, result.output
    error = result.output.splitlines()[-1]
    assert error.startswith("Error: ")
    assert len(error) < 500
    assert error.isprintable()
    assert sorted(folder.iterdir()) == before
