"""Help, logging, quiet and completion: the same in every command."""

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from weightspace.cli import waiting
from weightspace.cli.progress import byte_progress, progress

import weightspace as ws
from weightspace import cli
from weightspace.merging import METHODS
from weightspace.progress import Progress


def run(command: str) -> Result:
    return CliRunner().invoke(cli.main, command.split(), catch_exceptions=False)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its name, those of groups too."""
    context = click.Context(cli.main)
    for name in cli.COMMANDS:
        command = cli.main.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", one) for below, one in command.commands.items())
        elif command is not None:
            yield name, command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence(name: str) -> None:
    command = COMMANDS[name]
    for option in command.get_params(click.Context(command)):
        if isinstance(option, click.Option):
            text = option.help or ""
            assert re.match(r"[A-Z0-9]", text), (option.name, text)
            assert text.rstrip().endswith((".", "]")), (option.name, text)
            assert not text.startswith(("Of ", "That ", "Their ", "Which ", "What ", "Instead ", "The same")), text


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_grouped_once_each_without_bounds_of_machine_words(name: str) -> None:
    _, text = re.split(
        r"^(?:Options|Networks and data|Inputs|Output):$", run(f"{name} --help").output, maxsplit=1, flags=re.MULTILINE
    )
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, flags=re.MULTILINE)
    assert len(flags) == len(set(flags))
    assert {"--quiet", "--verbose", "--json", "--help"} <= set(flags)
    assert not re.search(r"\d{10}", text)


@pytest.mark.parametrize("group", ["", "labels "])
def test_the_summaries_of_commands_are_whole_sentences(group: str) -> None:
    text = run(f"{group}--help").output
    assert "..." not in text.replace("[ARGS]...", "")
    assert text.rstrip().endswith(".")


def test_a_table_beside_matching_is_named_in_the_help() -> None:
    text = "".join(run("barrier --help").output.split())
    assert "m-naive.csvandm-METHOD.csv" in text


def test_merge_has_its_methods_parameters_apart() -> None:
    text = run("merge --help").output
    titles = re.findall(r"^([A-Z][\w ]+):$", text, flags=re.MULTILINE)
    expected = ["Options", "Parameters of methods", "Networks and data", "Inputs", "Execution", "Output"]
    assert [title for title in titles if title in expected] == expected


@pytest.fixture
def _two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 0.0), ("b", 1.0)):
        ws.save_checkpoint({"w": torch.full((3,), value)}, f"{name}.safetensors")


MERGE = "merge a.safetensors b.safetensors -o m.safetensors"


@pytest.mark.usefixtures("_two")
def test_quiet_shows_no_progress_and_still_errors() -> None:
    assert "merging into m.safetensors" in run(MERGE).stderr
    assert run(f"{MERGE} --quiet").stderr == ""
    refused = run("merge a.safetensors nowhere -o m.safetensors -q")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: ")


@pytest.mark.usefixtures("_two")
def test_verbose_logs_what_is_done_and_leaves_no_handler() -> None:
    before = list(logging.getLogger("weightspace").handlers)
    lines = run(f"{MERGE} -v").stderr
    assert "weightspace.merging" in lines
    assert "linear, 1 tensors" in lines
    assert logging.getLogger("weightspace").handlers == before
    assert "weightspace.merging" not in run(MERGE).stderr


@pytest.mark.usefixtures("_two")
def test_the_library_logs_for_who_listens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="weightspace"):
        ws.merge_files(["a.safetensors", "b.safetensors"], "m.safetensors")
    assert any("linear, 1 tensors" in record.getMessage() for record in caplog.records)


def test_python_m_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightspace", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"weightspace {ws.__version__}\n"


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "mer", {"merge", "merge-adapters"}),
        (["train", "--task"], "digits", {"digits-mlp", "digits-cnn"}),
        (["merge", "a", "b", "-m"], "dare", {"dare_linear", "dare_ties"}),
        (["merge", "a", "b", "--align"], "weight", {"weight-matching"}),
        (["barrier", "a", "b", "--matching"], "weight", {"weight-matching"}),
        (["match", "a", "b", "--method"], "cycle", {"cycle-consistent"}),
        (["spec", "--network"], "torch", {"torchvision:"}),
    ],
)
def test_shells_complete_commands_methods_and_tasks(words: list[str], incomplete: str, expected: set[str]) -> None:
    completion = ShellComplete(cli.main, {}, "weightspace", "_WEIGHTSPACE_COMPLETE")
    assert {item.value for item in completion.get_completions(words, incomplete)} == expected


def test_files_are_completed_where_no_name_fits() -> None:
    completion = ShellComplete(cli.main, {}, "weightspace", "_WEIGHTSPACE_COMPLETE")
    (item,) = completion.get_completions(["train", "--task"], "my/ta")
    assert item.type == "file"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_there_is_a_sign_of_life_until_something_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(waiting, "_DELAY", 0.0)
    waiting.begin()
    timer = waiting._timer
    assert timer is not None
    timer.join()
    assert screen.getvalue() == "starting …"
    waiting.end()
    assert screen.getvalue() == "starting …\r\x1b[2K"
    waiting.end()
    assert screen.getvalue().count("\r") == 1


def test_progress_on_a_terminal_says_when_it_will_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress("matching") as update:
        for step in range(1, 4):
            update(step, 4, f"step {step}/4")
    assert re.search(r"step 3/4.* left .*\d:\d\d", screen.getvalue())


def test_a_merge_on_a_terminal_shows_how_far_the_alignment_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with byte_progress("merging into out") as update:
        update(Progress("bytes", 2_000, 4_000))
        update(Progress("step", 20, 250, name="b.safetensors"))  # the bar is drawn once more at the end
    assert "merging into out: b.safetensors, step 20/250" in screen.getvalue()
    assert re.search(r"merging into out: 4\.00 kB \(.* s, .*B/s\)\n$", screen.getvalue())


def test_no_progress_is_shown_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    waiting.begin()
    assert waiting._timer is None
    waiting.end()
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--t 0.3", "--t: not an option of linear, the default method. Did you mean -m slerp?"),
        ("--density 0.5 --base c", "--density: not an option of linear, the default method. Did you mean -m ties?"),
        ("slerp", "'slerp' is a method, not a checkpoint. Did you mean -m slerp?"),
        ("--t 0.3 --density 0.5", "No method has all of --density and --t"),
    ],
)
@pytest.mark.usefixtures("_two")
def test_a_method_that_was_forgotten_is_guessed(options: str, message: str) -> None:
    result = run(f"merge a.safetensors b.safetensors {options} -o m.safetensors")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("m.safetensors").exists()


def test_the_help_of_a_parameter_says_what_it_means_in_every_method() -> None:
    listed = {option.name: option.help for option in COMMANDS["merge"].params if isinstance(option, click.Option)}
    for row in METHODS.values():
        for parameter in row.parameters:
            if parameter.name != "seed":
                text = listed[f"parameter_{parameter.name}"] or ""
                meaning = re.escape(parameter.help[1:])
                assert re.search(rf"{meaning} \(([a-z_]+, )*{row.name}[,)]", text), (row.name, parameter.name)


def test_every_parameter_of_every_method_leads_to_a_method_that_has_it() -> None:
    linear = {parameter.name for parameter in METHODS["linear"].parameters}
    for row in METHODS.values():
        for parameter in row.parameters:
            if parameter.name in linear | {"seed"}:
                continue
            flag = f"--{parameter.name.replace('_', '-')}"
            result = CliRunner().invoke(cli.main, ["merge", "a", "b", flag, "0.5", "-o", "m"])
            (guess,) = re.findall(r"Did you mean -m (\w+)\?", result.output)
            assert parameter.name in {one.name for one in METHODS[guess].parameters}
