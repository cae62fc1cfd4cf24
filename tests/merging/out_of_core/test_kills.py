"""Signals to workers alone, and to all processes at once: merges and soups go on, or go on when they are run again.

benchmarks/kills.py does the same 150 times at moments that are drawn at random.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files
from weightspace.progress import Progress

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

TASK = """
import time
import torch
from torch import nn
from weightspace.tasks import ClassificationTask, Examples

def network():
    return nn.Linear(4, 3)

def examples():
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return {split: Examples(inputs, inputs[:, :3].argmax(1)) for split in ("train", "validation", "test")}

class Slow(ClassificationTask):
    def score(self, module, split="test"):
        time.sleep(0.2)
        return super().score(module, split)

task = Slow("slow", network, examples)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{layer}.weight": torch.randn(300, 700, generator=generator) for layer in range(24)}
        ws.save_checkpoint(state, folder / f"{name}.safetensors")
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        state = {"weight": torch.randn(3, 4, generator=generator), "bias": torch.zeros(3)}
        ws.save_checkpoint(state, folder / f"tuned{seed}.safetensors")
    (folder / "task.py").write_text(TASK)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_merge_survives_whatever_kills_one_of_its_workers(models: Path, tmp_path: Path) -> None:
    sources = [models / "a.safetensors", models / "b.safetensors"]
    merge_files(sources, tmp_path / "whole" / "out", output=OutputOptions(shard_size=6_000_000))
    for number in SIGNALS:
        hit: list[int] = []

        def strike(event: Progress, number: int = number, hit: list[int] = hit) -> None:
            if event.index and not hit and (workers := multiprocessing.active_children()):
                hit.append(workers[0].pid or 0)
                os.kill(hit[0], number)

        out = tmp_path / signal.Signals(number).name / "out"
        merge_files(
            sources,
            out,
            output=OutputOptions(shard_size=6_000_000),
            execution=ExecutionOptions(executor="processes", workers=2),
            on_progress=strike,
        )
        assert hit
        assert files(out) == files(tmp_path / "whole" / "out")
        assert os.listdir(out.parent) == ["out"]


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from weightspace.cli import main; main()"
    environment = {**os.environ, "WEIGHTSPACE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def is_alive(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["merge", "soup"])
def test_a_merge_whose_processes_are_all_killed_resumes_to_the_same_bytes(
    what: str, number: signal.Signals, models: Path, tmp_path: Path
) -> None:
    sources = (f"{models}/a.safetensors", f"{models}/b.safetensors")
    merge = ["merge", *sources, "--shard-size", "6MB", "--executor", "processes", "-o", "out"]
    tuned = [f"{models}/tuned{seed}.safetensors" for seed in range(5)]
    soup = ["soup", *tuned, "--task", f"{models}/task.py:task", "--workers", "2", "-o", "out"]
    command = merge if what == "merge" else soup
    under_way = ".out.merge/journal*" if what == "merge" else "cache/evaluations/*/*.json"
    hit, whole = tmp_path / "hit", tmp_path / "whole"
    for folder in (hit, whole):
        folder.mkdir()
    process = start(command, hit)
    wait_for(lambda: process.poll() is not None or any(hit.glob(under_way)))
    os.killpg(process.pid, number)
    process.wait()
    wait_for(lambda: not is_alive(process.pid))
    assert not (hit / "out").exists() or process.returncode == 0
    for folder in (hit, whole):
        assert start(command, folder).wait() == 0
    assert files(hit / "out") == files(whole / "out")
    assert {path.name for path in hit.iterdir()} - {"cache"} == {"out"}
    assert not list(hit.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "folder", "n" * 243 + ".safetensors"])
def test_leftovers_of_a_killed_write_are_removed_by_the_next_write(name: str, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, torch, weightspace as ws\n"
        "from weightspace.checkpoints import atomic_write\n"
        "atomic_write.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ws.save_checkpoint({'w': torch.ones(3)}, sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert left.name.endswith(".tmp")
    ws.save_checkpoint({"w": torch.ones(3)}, tmp_path / "another.safetensors")
    assert left.exists()
    ws.save_checkpoint({"w": torch.ones(3)}, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "another.safetensors"])


def test_files_that_another_process_is_writing_are_left_alone(tmp_path: Path) -> None:
    from weightspace.checkpoints.atomic_write import replacing_file

    with replacing_file(tmp_path / "m.safetensors") as file:
        file.write(b"half")
        ws.save_checkpoint({"w": torch.ones(3)}, tmp_path / "m.safetensors")
        assert len(list(tmp_path.glob(".m.safetensors.*.tmp"))) == 1
        file.seek(0)
        file.write(b"whole")
    assert (tmp_path / "m.safetensors").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("plant", [lambda path: path.symlink_to("/etc"), os.mkfifo], ids=["link", "pipe"])
def test_only_what_we_may_have_left_is_taken_away(plant: Callable[[Path], object], tmp_path: Path) -> None:
    plant(tmp_path / ".m.pt.01234567.tmp")
    for name in (".m.pt.0123456.tmp", ".m.pt.01234567.old", ".n.pt.01234567.tmp", "m.pt.01234567.tmp"):
        (tmp_path / name).write_text("precious")
    before = sorted(path.name for path in tmp_path.iterdir())
    ws.save_checkpoint({"w": torch.ones(3)}, tmp_path / "m.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "m.pt"])
