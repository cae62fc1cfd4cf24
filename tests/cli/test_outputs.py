"""``-o`` of every command: inputs and strangers stay, names that are nearly right are refused, ``--force`` replaces."""

import os
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import weightspace as ws
from weightspace import cli

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""
NETWORK = "--network model.py:build --input 2,6"
NOTES = b"my notes, of which there is no copy\n"


def run(command: str) -> Result:
    return CliRunner().invoke(cli.main, command.split())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models, a spec, a permutation, a metric and logits, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    Path("model.py").write_text(MODEL)
    for seed, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()
        ws.save_checkpoint(state, name)
        ws.save_checkpoint(state, f"{name}.safetensors")
    Path("names.txt").write_text("x\ny\nz\n")
    np.save("scores.npy", np.eye(3))
    return tmp_path


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its name, those of groups too."""
    context = click.Context(cli.main)
    for name in cli.COMMANDS:
        command = cli.main.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", one) for below, one in command.commands.items())
        elif command is not None:
            yield name, command


def test_every_command_that_writes_has_force() -> None:
    for name, command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("-o" in options) == ("--force" in options), name


#: What is run with a file of notes under the name of its output; each ends before anything is computed.
STRANGERS = (
    "merge a b -o notes.pt",
    "merge a b -o notes.safetensors",
    "merge a b -o notes.pt --dry-run",
    "train --task digits-mlp -o notes.pt",
    "soup a b --recipe uniform -o notes.pt",
    "soup a b --task digits-mlp -o out.pt --report notes.json",
    "soup a b --task digits-mlp -o out.pt --report notes.png",
    f"spec {NETWORK} -o notes.yaml",
    f"spec {NETWORK} -o notes",
    f"match a b {NETWORK} -o notes.safetensors",
    f"match a b {NETWORK} --method merge-many -o out --merged notes.pt",
    f"permute a p.safetensors {NETWORK} -o notes.bin",
    "evidence a --kind fisher --task digits-mlp -o notes.safetensors",
    "regmean-plusplus a b --task digits-mlp -o notes.pt",
    "calibrate-routers a b --task digits-mlp -o notes.pt",
    "barrier a b --task digits-mlp -o notes.json",
    "barrier a b --task digits-mlp -o notes.csv",
    "barrier a b --task digits-mlp -o out.png -o notes.svg",
    "ensemble a b --task digits-mlp --pairs 1 -o notes.pdf",
    "spectrum a -o notes.png",
    "demo -o notes.png",
    "labels build --discrete names.txt -o notes.safetensors",
    "labels predict m.safetensors scores.npy --observed names.txt -o notes.csv",
    "labels evaluate m.safetensors scores.npy --observed names.txt --truth names.txt -o notes.png",
    "labels locus m.safetensors --observed x,y -o notes.pdf",
)


@pytest.mark.parametrize("command", STRANGERS)
def test_a_file_of_another_kind_is_not_replaced(command: str, folder: Path) -> None:
    notes = Path(next(word for word in command.split() if word.startswith("notes")))
    notes.write_bytes(NOTES)
    before = sorted(os.listdir())
    result = run(command)
    assert result.exit_code == 2, result.output
    assert f"{notes} already exists and holds something other" in result.output
    assert len(result.output.splitlines()) == 1
    assert notes.read_bytes() == NOTES
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("command", "notes"),
    [
        ("merge a b -o notes.pt --force", "notes.pt"),
        (f"spec {NETWORK} -o notes.yaml --force", "notes.yaml"),
        (f"match a b {NETWORK} -o notes.safetensors --force", "notes.safetensors"),
        ("soup a b --recipe uniform --force -o notes.pt", "notes.pt"),
        ("spectrum a -o notes.png --force", "notes.png"),
        ("labels build --discrete names.txt -o notes.safetensors --force", "notes.safetensors"),
    ],
)
def test_force_replaces_it_and_what_was_written_needs_none(command: str, notes: str, folder: Path) -> None:
    Path(notes).write_bytes(NOTES)
    assert run(command).exit_code == 0
    assert Path(notes).read_bytes() != NOTES
    result = run(command.replace(" --force", ""))
    assert result.exit_code == 0, result.output


def test_the_files_that_a_command_names_itself_are_looked_at_too(folder: Path) -> None:
    Path("ab-vectors.png").write_bytes(NOTES)
    result = run("spectrum a b -o ab.png")
    assert result.exit_code == 2
    assert "ab-vectors.png already exists" in result.output
    Path("out").mkdir()
    Path("out/2-b.safetensors").write_bytes(NOTES)
    result = run(f"match a b {NETWORK} --method merge-many -o out")
    assert result.exit_code == 2
    assert "2-b.safetensors already exists" in result.output
    assert Path("ab-vectors.png").read_bytes() == Path("out/2-b.safetensors").read_bytes() == NOTES


@pytest.mark.parametrize("kind", ["{}", "{}.safetensors", "{}.pt"])
def test_a_model_that_somebody_trained_is_replaced_only_by_force(kind: str, folder: Path) -> None:
    trained = kind.format("trained")
    ws.save_checkpoint(ws.load_checkpoint("a"), trained)
    before = {
        path: path.read_bytes() for path in (*folder.glob("trained*"), *folder.glob("trained/*")) if path.is_file()
    }
    for command in (f"merge a b -o {trained}", f"soup a b --recipe uniform -o {trained}"):
        result = run(command)
        assert result.exit_code == 2
        assert result.output.startswith(f"Error: {trained} already exists, and weightspace has no record")
    assert before == {path: path.read_bytes() for path in before}
    assert run(f"merge a b -o {trained} --force").exit_code == 0
    assert run(f"merge a b -m slerp --base a --t 0.5 -o {trained}").exit_code == 0


#: Outputs over an input; all inputs are read by their folders.
OVER_INPUTS = (
    "merge a b -o a/model.safetensors",
    "merge a b -o b",
    "merge a b -o hard.safetensors",
    "merge a b -o link.safetensors",
    "merge a b -o a/model.safetensors --dry-run",
    "merge a b -m fisher --evidence a.safetensors,b.safetensors -o b.safetensors",
    "merge r.yml -o recipe.safetensors --force",
    "soup a b --recipe uniform -o a/model.safetensors",
    "soup a b --recipe uniform -o hard.safetensors",
    f"permute a a.safetensors {NETWORK} -o a/model.safetensors",
    f"match a b {NETWORK} -o a/model.safetensors",
    f"match a b {NETWORK} --method merge-many -o out --merged link.safetensors",
    "evidence a --kind fisher --task digits-mlp -o hard.safetensors",
    "regmean-plusplus a b --task digits-mlp -o hard.safetensors",
    "calibrate-routers a b --task digits-mlp -o hard.safetensors",
    "extract-lora a b -o a",
)


@pytest.mark.parametrize("command", OVER_INPUTS)
@pytest.mark.parametrize("force", ["", " --force"])
def test_an_output_over_an_input_is_refused_by_force_too(command: str, force: str, folder: Path) -> None:
    Path("hard.safetensors").hardlink_to("a/model.safetensors")
    Path("link.safetensors").symlink_to("a/model.safetensors")
    Path("r.yml").write_text("merge_method: linear\nmodels:\n- {model: a}\n- {model: b}\n")
    Path("recipe.safetensors").hardlink_to("r.yml")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run(command + force)
    assert result.exit_code == 2, result.output
    refused = ("made from", "exists and holds", *([] if force else ["no record of having made it"]))
    assert any(words in result.output for words in refused), result.output
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command",
    [
        "merge a b -o x.safetensor",
        "merge a b -o x.safetensor --dry-run",
        "train --task digits-mlp -o x.safetensors.bak",
        "soup a b --recipe uniform -o x.json",
        f"permute a p.safetensors {NETWORK} -o x.ptt",
        "evidence a --kind fisher --task digits-mlp -o x.gguf",
        f"match a b {NETWORK} --method merge-many -o out --merged x.st",
    ],
)
def test_a_name_that_is_nearly_that_of_a_file_becomes_no_folder(command: str, folder: Path) -> None:
    before = sorted(os.listdir())
    result = run(command)
    assert result.exit_code == 2
    assert "Did you mean x." in result.output
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", ["extract-lora a b -o x.safetensors", "merge-adapters a b -o x.bin"])
def test_an_adapter_becomes_no_folder_with_the_name_of_a_file(command: str, folder: Path) -> None:
    result = run(command)
    assert result.exit_code == 2
    assert "would be a folder" in result.output
    assert not list(Path().glob("x.*"))


@pytest.mark.parametrize("command", ["merge a b -o", "soup a b --recipe uniform -o", "train --task digits-mlp -o"])
def test_an_output_without_a_name_is_refused(command: str, folder: Path) -> None:
    result = CliRunner().invoke(cli.main, [*command.split(), ""])
    assert result.exit_code == 2
    assert "The output's name is ''" in result.output


@pytest.mark.parametrize("name", ["n" * 262, "n" * 251 + ".safetensors", f"{'n' * 300}/x.pt"])
def test_names_that_are_too_long_are_one_line(name: str, folder: Path) -> None:
    for command in (
        f"merge a b -o {name}",
        f"merge a {name} -o out",
        f"train --task digits-mlp -o {name}",
        f"inspect {name}",
        f"soup a {name} --recipe uniform -o out.pt",
    ):
        result = run(command)
        assert result.exit_code == 2, (command[:30], result.output, result.exception)
        (line,) = result.output.splitlines()
        assert len(line) < 500


@pytest.mark.parametrize(
    "command",
    [
        "merge a.pt b.pt -o out.pt",
        "soup a.pt b.pt --recipe uniform -o out.pt",
        "match a.pt b.pt --method merge-many --spec spec.yaml -o folder --merged out.pt",
        "permute a.pt p.safetensors --spec spec.yaml -o out.pt",
    ],
)
def test_a_flat_output_of_a_nested_input_says_so_once(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    spec = ws.derive_spec(network, (torch.zeros(1, 3),))
    spec.save("spec.yaml")
    ws.Permutation.identity(spec).save("p.safetensors")
    for name in "ab":
        torch.save({"epoch": 3, "state_dict": network.state_dict(), "optimizer": {"state": {}}}, f"{name}.pt")
    said = "out.pt is a flat state dict: a.pt has its own under 'state_dict' beside 'epoch', 'optimizer', and nothing"
    result = CliRunner().invoke(cli.main, command.split())
    assert result.exit_code == 0, result.output
    assert result.stderr.count(said) == 1
    network.load_state_dict(torch.load("out.pt"))
    for others in ("--quiet", "--force"):
        flat = CliRunner().invoke(cli.main, ["merge", "out.pt", "out.pt", "-o", "o.pt", others])
        assert "flat" not in flat.stderr
