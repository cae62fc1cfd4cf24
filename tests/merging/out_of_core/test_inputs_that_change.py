"""Inputs that change while they are merged: one line that names the file, nothing written, whoever does the work."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict, provenance
from weightspace.errors import CheckpointError
from weightspace.merging import ExecutionOptions, merge_files
from weightspace.merging.out_of_core import run
from weightspace.progress import Progress

Change = Callable[[Path], None]


def state(seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{layer}.weight": torch.randn(300, 40, generator=generator) for layer in range(4)}


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")


def replace(path: Path) -> None:
    ws.save_checkpoint(state(99), path)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., None]:
    """Return ``merge(change, path, …)``: a merge during which a file is changed, once it was planned."""
    for seed, name in enumerate(("a.safetensors", "b.pt", "c")):
        ws.save_checkpoint(state(seed), tmp_path / name)

    def build(
        change: Change, path: Path, *, out: str = "out.safetensors", executor: str = "threads", **options: Any
    ) -> None:
        def meanwhile(event: Progress) -> None:
            if not event.index and not changed:
                changed.append(change(path))

        changed: list[None] = []
        sources = [tmp_path / name for name in ("a.safetensors", "b.pt", "c")]
        execution = ExecutionOptions(executor=executor, threads=2)
        merge_files(sources, tmp_path / out, on_progress=meanwhile, execution=execution, **options)

    return build


@pytest.mark.parametrize(
    ("executor", "name"),
    [
        *(
            (executor, name)
            for executor in ("threads", "serial")
            for name in ("a.safetensors", "b.pt", "c/model.safetensors")
        ),
        *(("processes", name) for name in ("a.safetensors", "b.pt")),
        ("ray", "a.safetensors"),
    ],
)
def test_a_file_that_becomes_shorter_is_one_line_in_every_executor(
    executor: str, name: str, merge: Callable[..., None], tmp_path: Path
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=rf"{name} changed during the merge, from .* to .* bytes") as found:
        merge(shorten, tmp_path / name, executor=executor)
    assert "\n" not in str(found.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("change", [empty, lengthen, overwrite, replace, touch])
@pytest.mark.parametrize("out", ["out.safetensors", "out.pt", "out"])
def test_the_old_output_stays_however_an_input_changes(
    change: Change, out: str, merge: Callable[..., None], tmp_path: Path
) -> None:
    ws.save_checkpoint({"old": torch.ones(3)}, tmp_path / out, metadata=provenance([], "linear", {}))
    with pytest.raises(CheckpointError, match=r"a\.safetensors changed during the merge"):
        merge(change, tmp_path / "a.safetensors", out=out)
    assert list(ws.load_checkpoint(tmp_path / out)) == ["old"]
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_goes_is_named(merge: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors disappeared during the merge \(No such file"):
        merge(Path.unlink, tmp_path / "c" / "model.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_bad_values_of_a_changed_input_are_reported_as_the_change(merge: Callable[..., None], tmp_path: Path) -> None:
    def spoil(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\xc0\x7f")  # NaN

    with pytest.raises(CheckpointError, match=r"a\.safetensors changed during the merge, at its old size"):
        merge(spoil, tmp_path / "a.safetensors")


def test_a_file_that_is_left_alone_is_merged(merge: Callable[..., None], tmp_path: Path) -> None:
    merge(lambda path: None, tmp_path / "a.safetensors")
    expected = ws.merge([state(seed) for seed in range(3)])
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_evidence_and_adapters_are_watched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ws.save_checkpoint(state(0), "base")
    for seed, name in enumerate("ab"):
        ws.save_checkpoint(state(seed), name)
        ws.save_checkpoint({key: tensor.square() for key, tensor in state(seed).items()}, f"{name}-fisher.safetensors")
    Path("lora").mkdir()
    factors = {"lora_A": torch.randn(2, 40), "lora_B": torch.randn(300, 2)}
    named = {f"base_model.model.layers.0.{side}.weight": tensor for side, tensor in factors.items()}
    ws.save_checkpoint(named, "lora/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layers.0"]}
    Path("lora/adapter_config.json").write_text(json.dumps(config))

    def changing(path: str) -> Callable[[Progress], None]:
        return lambda event: None if event.index else shorten(Path(path))

    evidence = ["a-fisher.safetensors", "b-fisher.safetensors"]
    with pytest.raises(CheckpointError, match=r"b-fisher\.safetensors changed"):
        merge_files(["a", "b"], "out", method="fisher", evidence=evidence, on_progress=changing(evidence[1]))
    for name in ("lora/adapter_model.safetensors", "lora/adapter_config.json"):
        content = Path(name).read_bytes()
        with pytest.raises(CheckpointError, match=f"{name} changed"):
            merge_files(["base+lora", "b"], "out", on_progress=changing(name))
        Path(name).write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "2_Dense/model.safetensors", "modeling_x.py"])
@pytest.mark.parametrize("change", [Path.unlink, lengthen, touch])
def test_files_beside_the_weights_are_watched_too(
    change: Change, name: str, merge: Callable[..., None], tmp_path: Path
) -> None:
    for folder in "de":
        ws.save_checkpoint(state(7), tmp_path / folder)
        for file in ("config.json", "tokenizer.json", "2_Dense/model.safetensors", "modeling_x.py"):
            (tmp_path / folder / file).parent.mkdir(exist_ok=True)
            (tmp_path / folder / file).write_text("{}")

    def changing(event: Progress) -> None:
        if not event.index:
            change(tmp_path / "d" / name)

    with pytest.raises(CheckpointError, match=f"d/{name} (changed|disappeared) during the merge"):
        merge_files([tmp_path / "d", tmp_path / "e"], tmp_path / "out", on_progress=changing)
    assert not (tmp_path / "out").exists()


def test_files_beside_the_weights_do_not_matter_to_one_file(merge: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "c" / "notes.bin").write_text("")
    (tmp_path / "c" / "config.json").write_text("{}")
    changed: list[Path] = []
    report = merge_files(
        [tmp_path / "c", tmp_path / "a.safetensors"],
        tmp_path / "out.safetensors",
        on_progress=lambda _: changed or changed.append(touch(tmp_path / "c" / "config.json")),  # type: ignore[func-returns-value]
    )
    assert report.warnings == ()


def test_the_command_line_ends_with_one_line_and_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        ws.save_checkpoint(state(seed), f"{name}.safetensors")
    monkeypatch.setattr(run, "fetch", lambda *args, **options: shorten(Path("b.safetensors")))
    result = CliRunner().invoke(cli.main, ["merge", "a.safetensors", "b.safetensors", "-o", "out"])
    assert result.exit_code == 2
    (line,) = (line for line in result.output.splitlines() if line.startswith("Error: "))
    assert "b.safetensors changed during the merge" in line
    assert sorted(os.listdir()) == ["a.safetensors", "b.safetensors"]
