"""Merges of checkpoints behind URLs: the same tensors as of local ones, and nothing read before it is needed."""

import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict, load_metadata, remote
from weightspace.errors import CheckpointError
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files, reproduce
from weightspace.progress import Progress

NAMES = ("a", "b", "base")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "CHUNK", 20_000)
    return tmp_path / "cache"


@pytest.fixture
def system() -> Iterator[MemoryFileSystem]:
    found = MemoryFileSystem()
    found.store.clear()
    yield found
    found.store.clear()


@pytest.fixture
def local(system: MemoryFileSystem, tmp_path: Path) -> Path:
    """Three models with configuration and tokenizer, on the disk and behind ``memory://models/``."""
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{layer}.weight": torch.randn(120, 100, generator=generator) for layer in range(6)}
        folder = tmp_path / "models" / name
        ws.save_checkpoint(state, folder)
        (folder / "config.json").write_text('{"torch_dtype": "float32"}')
        (folder / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}')
    system.put(str(tmp_path / "models"), "/", recursive=True)
    return tmp_path / "models"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each piece that is read of ``memory://``."""
    seen: list[int] = []

    def reader(file: MemoryFile, size: int = -1) -> bytes:
        piece = io.BytesIO.read(file, size)
        seen.append(len(piece))
        return piece

    monkeypatch.setattr(MemoryFile, "read", reader, raising=False)
    return seen


def assert_equal(found: StateDict, expected: StateDict) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def urls(*names: str) -> list[str]:
    return [f"memory://models/{name}" for name in names]


def test_models_behind_urls_merge_to_what_local_ones_merge_to(local: Path, tmp_path: Path) -> None:
    settings = {"method": "dare_ties", "weights": [0.6, 0.4], "parameters": {"density": 0.5, "seed": 3}}
    merge_files(
        urls("a", "b"), tmp_path / "out", base=urls("base")[0], output=OutputOptions(shard_size=150_000), **settings
    )
    sources = [local / name for name in "ab"]
    merge_files(sources, tmp_path / "again", base=local / "base", output=OutputOptions(shard_size=150_000), **settings)
    assert_equal(ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(tmp_path / "again"))
    for file in sorted((tmp_path / "again").iterdir()):
        if file.suffix != ".md" and "index" not in file.name:  # these keep the recipe
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    ours, theirs = (load_metadata(tmp_path / name) for name in ("out", "again"))
    assert {**ours, "recipe": ""} == {**theirs, "recipe": ""}
    assert "memory://models/a" in ours["recipe"]


def test_a_dry_run_reads_headers_only(local: Path, tmp_path: Path, read: list[int]) -> None:
    report = merge_files(urls("a", "b"), tmp_path / "out", dry_run=True)
    assert sum(read) < 2_000
    size = (local / "a" / "model.safetensors").stat().st_size
    assert report.fetched_bytes == 2 * size
    assert not (tmp_path / "out").exists()


def test_a_model_is_fetched_once_for_all_merges(local: Path, tmp_path: Path, read: list[int]) -> None:
    first = merge_files(urls("a", "b"), tmp_path / "out")
    before = sum(read)
    second = merge_files(urls("b", "a"), tmp_path / "other")
    assert sum(read) == before
    assert first.fetched_bytes > 0
    assert second.fetched_bytes == 0


def test_progress_counts_what_is_fetched_too(local: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    sources, out = urls("a", "b"), tmp_path / "out"
    report = merge_files(sources, out, on_progress=lambda event: told.append((event.index, event.total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    tensors = sum(tensor.nbytes for tensor in ws.load_checkpoint(tmp_path / "out").values())
    assert {total for _, total in told} == {report.fetched_bytes + tensors}
    assert told[-1][0] == told[-1][1]


def test_a_recipe_may_mix_urls_and_paths(local: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: memory://models/base\ntokenizer_source: memory://models/b\n"
        f"models:\n- model: memory://models/a/model.safetensors\n- model: {local}/b\n"
    )
    merge_files(recipe, tmp_path / "out")
    merge_files([local / "a", local / "b"], tmp_path / "again", method="task_arithmetic", base=local / "base")
    assert_equal(ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(tmp_path / "again"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert load_metadata(tmp_path / "out")["recipe"].startswith("merge_method: task_arithmetic\nbase_model: memory://")


def test_a_merge_of_urls_is_reproduced(local: Path, system: MemoryFileSystem, tmp_path: Path) -> None:
    merge_files(urls("a", "b"), tmp_path / "out")
    assert reproduce(tmp_path / "out").equal
    system.put_file(str(local / "base" / "model.safetensors"), "/models/b/model.safetensors")
    found = reproduce(tmp_path / "out")
    assert not found.equal
    assert found.changed == ("b/model.safetensors",)


def test_a_merge_that_is_killed_while_it_fetches_resumes(
    local: Path, cache: Path, tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHUNK", 5_000)
    counted = MemoryFile.read
    monkeypatch.setattr(MemoryFile, "read", lambda file, size=-1: (time.sleep(0.005), counted(file, size))[1])
    target = multiprocessing.get_context("fork").Process(target=merge_files, args=(urls("a", "b"), tmp_path / "out"))
    target.start()
    while target.is_alive() and not any(part.stat().st_size > 100_000 for part in cache.glob("*/parts/*")):
        time.sleep(0.005)
    assert target.pid is not None
    os.kill(target.pid, signal.SIGKILL)
    target.join()
    assert not (tmp_path / "out").exists()
    report = merge_files(urls("a", "b"), tmp_path / "out")
    assert report.fetched_bytes < 2 * (local / "a" / "model.safetensors").stat().st_size - 100_000
    assert sum(read) < report.fetched_bytes + 5_000
    merge_files([local / "a", local / "b"], tmp_path / "again")
    assert_equal(ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(tmp_path / "again"))


def test_a_merge_interrupted_in_its_output_resumes_with_the_same_mirrors(local: Path, tmp_path: Path) -> None:
    def stop(event: Progress) -> None:
        if event.index > event.total * 0.9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_files(urls("a", "b"), tmp_path / "out", execution=ExecutionOptions(threads=1), on_progress=stop)
    assert merge_files(urls("a", "b"), tmp_path / "out").resumed > 0


def test_the_disk_must_hold_what_is_fetched_and_what_is_written(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (local / "a" / "model.safetensors").stat().st_size
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": int(2.5 * size)}))
    with pytest.raises(CheckpointError, match="Make room"):
        merge_files(urls("a", "b"), tmp_path / "out", dry_run=True)
    merge_files(urls("a"), tmp_path / "out", dry_run=True)


def test_an_output_is_a_local_path(local: Path) -> None:
    with pytest.raises(CheckpointError, match=r"memory://out is a URL; expected a local path"):
        merge_files(urls("a", "b"), "memory://out")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://models/none", "there is no such file or folder"),
        ("nosuch://models/a", "the scheme 'nosuch' is unknown"),
        ("memory://models/a+memory://models/none", "memory://models/none cannot be read"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line(url: str, message: str, local: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["merge", url, "memory://models/b", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.output
    assert len([line for line in result.stderr.splitlines() if "cannot be read" in line]) == 1
    assert "Traceback" not in result.output


def test_the_command_line_merges_and_inspects_urls(local: Path, tmp_path: Path) -> None:
    arguments = ["merge", *urls("a", "b"), "-m", "linear", "-o", str(tmp_path / "out")]
    planned = CliRunner().invoke(cli.main, [*arguments, "--dry-run"])
    assert "fetches  57" in planned.stdout, planned.output
    made = CliRunner().invoke(cli.main, arguments)
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(cli.main, ["inspect", "memory://models/a", "--json"])
    assert json.loads(shown.stdout)["checkpoints"][0]["path"] == "memory://models/a"
