"""Merges that are killed: each goes on to the same bytes, and nothing unfinished is ever seen under the final name."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.merging import ExecutionOptions, MergeReport, OutputOptions, merge_files
from weightspace.merging.out_of_core.staging import Staging

KILLS = 20


def merge(folder: Path, out: Path) -> MergeReport:
    torch.set_num_threads(1)
    return merge_files(
        [folder / "a.safetensors", folder / "b.safetensors"],
        out,
        method="task_arithmetic",
        base=folder / "base.safetensors",
        weights=[0.7, 0.4],
        output=OutputOptions(shard_size=6_000_000),
        execution=ExecutionOptions(threads=2),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "base")):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{layer}.weight": torch.randn(500, 700, generator=generator) for layer in range(24)}
        ws.save_checkpoint(state, folder / f"{name}.safetensors")
    return folder


def start(folder: Path, out: Path) -> multiprocessing.Process:
    # Forked: the children have torch already, so that the kills fall into the merge and not into an import.
    process = multiprocessing.get_context("fork").Process(target=merge, args=(folder, out))
    process.start()
    return process


def test_a_merge_killed_at_any_moment_resumes_to_the_same_bytes(models: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    begun = time.perf_counter()
    first = start(models, tmp_path / "whole" / "out")
    first.join()
    seconds = time.perf_counter() - begun
    expected = files(tmp_path / "whole" / "out")
    moments = random.Random(0)
    killed = resumed = 0
    for attempt in range(40 * KILLS):
        out = tmp_path / str(attempt) / "out"
        out.parent.mkdir()
        process = start(models, out)
        time.sleep(moments.uniform(0, seconds))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            assert files(out) == expected
            continue
        assert not out.exists() or files(out) == expected
        killed += 1
        resumed += merge(models, out).resumed > 0
        assert files(out) == expected
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        if killed >= KILLS and resumed >= 5:
            break
    assert killed >= KILLS
    assert resumed >= 5


def test_a_merge_by_processes_that_is_killed_resumes_to_the_same_bytes(models: Path, tmp_path: Path) -> None:
    code = "import sys; from weightspace.cli import main; main()"
    sources = ("merge", str(models / "a.safetensors"), str(models / "b.safetensors"), "-m", "task_arithmetic")
    given = ("--base", str(models / "base.safetensors"), "--shard-size", "6MB", "--threads", "2", "-o", "out")
    given += ("--executor", "processes")
    command = (sys.executable, "-c", code, *sources, *given)
    whole = tmp_path / "whole"
    whole.mkdir()
    begun = time.perf_counter()
    subprocess.run(command, cwd=whole, check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    for share in (0.5, 0.7, 0.8, 0.9):
        place = tmp_path / str(share)
        place.mkdir()
        process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * seconds)
        process.kill()
        process.wait()
        subprocess.run(command, cwd=place, check=True, capture_output=True)
        assert files(place / "out") == files(whole / "out")
        assert [path.name for path in place.iterdir()] == ["out"]


def test_the_old_output_stays_until_the_new_one_is_complete(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_files([models / "a.safetensors"], out)
    before = files(out)
    (tmp_path / "new").mkdir()
    merge(models, tmp_path / "new" / "out")
    after = files(tmp_path / "new" / "out")
    assert after != before
    for moment in (0.05, 0.1, 0.2):
        process = start(models, out)
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert files(out) in (before, after)  # the kill may come between the last rename and the end
    merge(models, out)
    assert files(out) == after


def test_leftovers_of_another_merge_are_not_used(models: Path, tmp_path: Path) -> None:
    for moment in (0.05, 0.1, 0.2):
        process = start(models, tmp_path / "out")
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    report = merge_files([models / "a.safetensors", models / "b.safetensors"], tmp_path / "out", weights=[1, 0])
    assert report.resumed == 0
    found, a = ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(models / "a.safetensors")
    assert all(torch.equal(found[name], a[name]) for name in a)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_merges_into_one_output_do_not_meet(models: Path, tmp_path: Path) -> None:
    process = start(models, tmp_path / "out")
    while not (tmp_path / ".out.merge" / "plan").exists():
        time.sleep(0.001)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(CheckpointError, match="another merge"):
            merge(models, tmp_path / "out")
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.join()
    assert process.exitcode == 0


def test_finishing_happens_once_however_often_the_merge_is_stopped(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge_doubled() -> None:
        merge_files(
            [models / "a.safetensors"],
            tmp_path / "out.safetensors",
            finish=lambda state: {name: 2 * tensor for name, tensor in state.items()},
        )

    with monkeypatch.context() as patched:
        patched.setattr(Staging, "promote", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge_doubled()
    merge_doubled()
    found, a = ws.load_checkpoint(tmp_path / "out.safetensors"), ws.load_checkpoint(models / "a.safetensors")
    assert all(torch.equal(found[name], 2 * a[name]) for name in a)


def interrupt(staging: Staging, made: str | None) -> None:
    raise KeyboardInterrupt
