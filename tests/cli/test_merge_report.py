"""``merge --report`` and ``merge --verify``: what they print and write, and what they refuse."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli


def run(line: str) -> Result:
    return CliRunner().invoke(cli.main, line.split())


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{i}.w": torch.randn(6, 5, generator=generator) for i in range(2)}
        ws.save_checkpoint(state | {"head": torch.randn(3, generator=generator)}, f"{name}.safetensors")


MERGE = "merge a.safetensors b.safetensors -m ties --base base.safetensors -o out.safetensors"


def test_a_report_is_a_table_a_picture_and_data_before_the_merge() -> None:
    command = f"{MERGE} --report r.png --report r.json --report r.csv"
    run(command)  # a repeated call replaces its earlier results
    result = run(command)
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.stdout.splitlines()[1:6] if line]
    assert rows == ["layer", "layers.0", "layers.1", "outside", "all"]
    assert result.stdout.splitlines()[-4:] == ["out.safetensors", "r.png", "r.json", "r.csv"]
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert (found["models"], found["reference"]) == (["a.safetensors", "b.safetensors"], "base.safetensors")
    table = list(csv.DictReader(Path("r.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["kind"] for row in table] == ["layer"] * 3 + ["tensor"] * 3 + ["total"]
    assert float(table[-1]["sign_conflicts"]) == found["total"]["conflicts"]


def test_equal_sources_give_equal_pictures() -> None:
    for name in ("one.svg", "two.svg"):
        assert run(f"{MERGE} --report {name} --dry-run").exit_code == 0
    assert Path("one.svg").read_bytes() == Path("two.svg").read_bytes()
    assert not Path("out.safetensors").exists()


def test_json_has_the_differences() -> None:
    report = json.loads(run(f"{MERGE} --report - --report-threshold 0 --json").stdout)
    assert report["differences"]["threshold"] == 0
    assert len(report["differences"]["tensors"]) == 3
    assert report["files"] == ["out.safetensors"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--report r.txt", ".png"),
        ("--report-threshold .1", "--report-threshold has no effect without --report"),
        ("--report r.png --report-threshold nan", ""),
        ("--verify", "single file"),
        ("--verify --dry-run", "has no effect with --dry-run"),
        ("--report - --align weight-matching --task digits-mlp", "Leave one out"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(options: str, said: str) -> None:
    result = run(f"{MERGE} {options}")
    assert result.exit_code == 2
    assert said in result.output
    assert not Path("out.safetensors").exists()
    assert not Path("r.png").exists()


@pytest.fixture
def _folders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    for seed, name in enumerate("xy"):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / name)


@pytest.mark.usefixtures("_folders")
def test_verify_loads_and_runs_the_output() -> None:
    result = run("merge x y -o merged --verify")
    assert result.exit_code == 0, result.output
    assert "LlamaForCausalLM, 21 weights, all in place; one forward pass, finite outputs" in result.stdout
    report = json.loads(run("merge x y -o merged --verify --json").stdout)
    assert report["verification"] == {"network": "LlamaForCausalLM", "parameters": 21, "forward": True, "note": ""}


@pytest.mark.usefixtures("_folders")
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("lm_head.weight", None, "lacks weights of the network, LlamaForCausalLM of transformers: lm_head.weight"),
        ("model.norm.weight", (9,), "other shapes than the network"),
        ("model.extra.weight", (2,), "no place for, LlamaForCausalLM of transformers: model.extra.weight"),
    ],
)
def test_verify_finds_weights_that_do_not_fit(name: str, change: tuple[int, ...] | None, said: str) -> None:
    for folder in "xy":
        state = ws.load_checkpoint(folder)
        if change is None:
            del state[name]
        else:
            state[name] = torch.ones(change)
        ws.save_checkpoint(state, f"{folder}2", companions_from=folder)
    result = run("merge x2 y2 -o merged --verify")
    assert result.exit_code == 2
    assert "merged was written, but did not pass --verify" in result.output
    assert said in result.output


@pytest.mark.usefixtures("_folders")
def test_verify_needs_a_network_that_transformers_knows() -> None:
    for folder in "xy":
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        Path(folder, "config.json").write_text(json.dumps({**config, "model_type": "of_nobody"}), encoding="utf-8")
    result = run("merge x y -o merged --verify")
    assert result.exit_code == 2
    assert "transformers cannot load merged" in result.output
    shutil.rmtree("merged")
    for folder in "xy":
        Path(folder, "config.json").unlink()
    assert "needs a config.json, and x, from which" in run("merge x y -o merged --verify").output
