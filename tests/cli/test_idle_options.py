"""Options that change nothing beside the others are refused in one line, before anything is read."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from weightspace import cli

TASK = ("--task", "digits-mlp")

#: Command line, and the option of it that would change nothing.
IDLE = [
    ("soup a b --recipe greedy {task} --per layer -o s.pt", "--per"),
    ("soup a b --recipe greedy {task} --positions 0,1 -o s.pt", "--positions"),
    ("soup a b --recipe uniform {task} --tie reject -o s.pt", "--tie"),
    ("soup a b --recipe uniform {task} --replacement -o s.pt", "--replacement"),
    ("soup a b --recipe wise-ft {task} --tie reject -o s.pt", "--tie"),
    ("soup a b --recipe wise-ft {task} --per model -o s.pt", "--per"),
    ("soup a b --compare {task} --positions 0,1 -o s.pt", "--positions"),
    ("soup a b --recipe uniform --device cuda -o s.pt", "--device"),
    ("soup a b --recipe uniform --mode min -o s.pt", "--mode"),
    ("soup a b --recipe uniform --no-cache -o s.pt", "--cache/--no-cache"),
    ("soup a b --recipe model_stock --base a --workers 2 -o s.pt", "--workers"),
    ("barrier a b c {task} --plane --points 9", "--points"),
    ("barrier a b c {task} --plane --baseline mean", "--baseline"),
    ("barrier a b c {task} --plane --workers 2", "--workers"),
    ("barrier a b {task} --resolution 9", "--resolution"),
    ("barrier a b {task} --seed 1", "--seed"),
    ("ensemble a b {task} --seed 1", "--seed"),
    ("spectrum a b --seed 1", "--seed"),
    ("spectrum a b --data here", "--data"),
    ("match a b --network torchvision:resnet18 --method sinkhorn-l2 --device cuda -o p.safetensors", "--device"),
    ("match a b --network torchvision:resnet18 --data here -o p.safetensors", "--data"),
    ("permute a b --network torchvision:resnet18 --data here -o p.safetensors", "--data"),
    ("permute a b --spec c --input 1,2 -o p.safetensors", "--input"),
    ("spec --network torchvision:resnet18 --data here", "--data"),
    ("spec c --symmetry full", "--symmetry"),
    ("merge a b --device cuda -o m", "--device"),
    ("merge a b --seed 3 -o m", "--seed"),
    ("merge a b --base c -o m.pt", "--base"),
    ("merge a b --base c --strict -o m", "--base c"),
    ("merge a b -m slerp --t .5 --seed 3 -o m", "--seed"),
    ("merge a b --intermediate-dir here -o m", "--intermediate-dir"),
    ("merge a b --executor threads --workers 2 -o m", "--workers"),
    ("merge --reproduce a -m ties", "--method"),
    ("merge --reproduce a --weights .5,.5", "--weights"),
    ("merge --reproduce a --density .5", "--density"),
    ("merge --reproduce a --dry-run", "--dry-run"),
    ("labels build --wordnet all --labels a,b -o m.safetensors", "--labels"),
    ("labels build --edges a --metric cosine -o m.safetensors", "--metric"),
    ("labels build --edges a --ancestors -o m.safetensors", "--ancestors"),
    ("labels build --matrix a --folder here -o m.safetensors", "--folder"),
    ("labels build --graph a --key x -o m.safetensors", "--key"),
    ("labels build --discrete x,y --header -o m.safetensors", "--header/--no-header"),
]


@pytest.mark.parametrize(("line", "option"), IDLE)
def test_an_option_without_effect_is_refused(
    line: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Path(name).touch()
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(cli.main, line.format(task=" ".join(TASK)).split())
    assert result.exit_code == 2, result.output
    (said,) = result.stderr.splitlines()
    assert f"{option} " in said
    assert "Leave it out" in said
    assert sorted(tmp_path.iterdir()) == before


def test_lenient_and_strict_contradict_each_other(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["merge", "a", "b", "--lenient", "--strict", "-o", str(tmp_path / "m")])
    assert result.exit_code == 2
    assert "--lenient and --strict contradict each other" in result.stderr
