"""Names of tasks, networks, methods and files are checked before torch is imported, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from weightspace.cli.commands import Choice

from weightspace import cli

MISTAKES = {
    "train --task digit-mlp -o out.pt": "Did you mean 'digits-mlp'?",
    "train --task own.py:task -o out.pt": "There is no file own.py",
    "train --task there.py -o out.pt": "doesn't name a task in it. Expected there.py:object",
    "match a.pt nowhere.pt --task digits-mlp -o out.safetensors": "nowhere.pt does not exist",
    "match a.pt b.pt --task digits-mlp --method weight-mathing -o out.safetensors": "Did you mean 'weight-matching'?",
    "match a.pt org/model --task digits-mlp -o out.safetensors": "`hf download org/model` downloads it",
    "permute a.pt nowhere.safetensors --task digits-mlp -o out.pt": "nowhere.safetensors does not exist",
    "spec nowhere.yaml": "nowhere.yaml does not exist",
    "spec --network torchvison:resnet18": "Did you mean 'torchvision:NAME'?",
    "spec --network own.py:build,width=3": "There is no file own.py",
    "evidence nowhere.pt --kind gram --task digits-mlp -o out.safetensors": "nowhere.pt does not exist",
    "regmean-plusplus a.pt nowhere.pt --task digits-mlp -o out.pt": "nowhere.pt does not exist",
    "calibrate-routers a.pt nowhere.pt --task digits-mlp -o out.pt": "nowhere.pt does not exist",
    "merge a.pt nowhere.pt -o out.pt": "nowhere.pt does not exist",
    "merge a.pt org/model -o out.pt": "`hf download org/model` downloads it",
    "merge a.pt b.pt -m slurp -o out.pt": "Did you mean 'slerp'?",
    "merge a.pt b.pt -m linear --t .5 -o out.pt": "linear has no --t; nearswap and slerp have it.",
    "merge a.pt b.pt -m ties --base a.pt --density abc -o out.pt": "--density takes a number, found 'abc'.",
    "merge a.pt b.pt -m ties --base a.pt --density .5,abc -o out.pt": "--density takes a number, found 'abc'.",
    "merge a.pt b.pt --align weight-match --task digits-mlp -o out.pt": "Did you mean 'weight-matching'?",
    "merge a.pt b.pt --align weight-matching --task digit-mlp -o out.pt": "Did you mean 'digits-mlp'?",
    "extract-lora a.pt nowhere.pt -o out": "nowhere.pt does not exist",
    "merge-adapters a nowhere -o out": "does not exist",
    "spectrum nowhere.pt": "nowhere.pt does not exist",
    "soup a.pt org/model --task digits-mlp -o out.pt": "`hf download org/model` downloads it",
    "soup a.pt b.pt --task digits -o out.pt": "Did you mean 'digits-",
    "ensemble a.pt nowhere.pt --task digits-mlp": "nowhere.pt does not exist",
    "barrier a.pt nowhere.pt --task digits-mlp": "nowhere.pt does not exist",
    "barrier a.pt b.pt --task digits-mpl": "Did you mean 'digits-mlp'?",
    "barier a.pt b.pt": "Did you mean 'barrier'?",
    "match a.pt b.pt c.pt --method merge-mny -o out": "Did you mean 'merge-many'?",
    "match nowhere.pt b.pt --method activation -o out": "Did you mean 'activation-matching'?",
    "barrier a.pt b.pt --task digits-mlp --matching weight": "Did you mean 'weight-matching'?",
    "barrier a.pt b.pt --task digits-mlp --statistics rest": "Did you mean 'reset'?",
    "barrier a.pt b.pt --task digits-mlp --executor process": "Did you mean 'processes'?",
    "soup a.pt b.pt --recipe greed -o out.pt": "Did you mean 'greedy'?",
    "soup a.pt b.pt --per layers -o out.pt": "Did you mean 'layer'?",
    "merge a.pt b.pt --executor threds -o out.pt": "Did you mean 'threads'?",
}

CODE = """
import sys
from click.testing import CliRunner
from weightspace import cli
for line in sys.stdin.read().splitlines():
    result = CliRunner().invoke(cli.main, line.split())
    assert result.exit_code == 2, line + result.output
    assert 'torch' not in sys.modules, line
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b.pt", "there.py"):
        Path(name).write_text("")
    Path("a").mkdir()


def test_mistakes_in_names_cost_no_torch() -> None:
    lines = "\n".join(line for line in MISTAKES if not line.startswith("merge a.pt b.pt -m"))
    done = subprocess.run([sys.executable, "-c", CODE], input=lines, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", MISTAKES)
def test_they_are_a_line_that_says_what_was_meant(line: str) -> None:
    result = CliRunner().invoke(cli.main, line.split())
    assert result.exit_code == 2, result.output
    assert MISTAKES[line] in result.output
    assert "Traceback" not in result.output
    assert not list(Path().glob("out*"))


def test_every_option_with_choices_suggests_the_one_that_was_meant() -> None:
    context = click.Context(cli.main)
    groups = [command for name in cli.COMMANDS if (command := cli.main.get_command(context, name)) is not None]
    groups += [inner for group in groups if isinstance(group, click.Group) for inner in group.commands.values()]
    choices = [option.type for command in groups for option in command.params if isinstance(option.type, click.Choice)]
    assert len(choices) > 10
    assert {type(choice) for choice in choices} == {Choice}
