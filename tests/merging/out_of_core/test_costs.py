"""Memory of merges against the plan, for slices of which a method takes many copies, and for many models."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files

#: Copies of a tensor's slice are far above what else a merge takes: 8 MB each in float32.
SHAPE = (2, 2048, 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("base", "a", "b")):
        tensor = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        ws.save_checkpoint({"experts": tensor.bfloat16()}, folder / f"{name}.safetensors")
    return folder


def private_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def sampled(peak: list[int]) -> Iterator[None]:
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.001):
            peak[0] = max(peak[0], private_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("nuslerp", {"nuslerp_flatten": False}),
        ("arcee_fusion", {}),
        ("della", {"density": 0.5, "epsilon": 0.1}),
        ("model_stock", {"filter_wise": True}),
    ],
    ids=str,
)
def test_a_merge_by_slices_takes_no_more_memory_than_it_says(
    method: str, parameters: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    sources = [folder / "a.safetensors", folder / "b.safetensors"][: 1 if method == "arcee_fusion" else 2]
    options: dict[str, Any] = {"method": method, "parameters": parameters, "base": folder / "base.safetensors"}
    options |= {
        "output": OutputOptions(hashes=False),
        "execution": ExecutionOptions(memory=2**32, threads=1, fsync=False),
    }
    merge_files(sources, tmp_path / "first", **options)  # imports what it needs
    taken = []
    for _ in range(3):  # what other tests have left in the process only adds
        before, peak = private_memory(), [0]
        with sampled(peak):
            report = merge_files(sources, tmp_path / "second", **options)
        taken.append(peak[0] - before)
    assert min(taken) < report.memory


def test_methods_without_slices_are_planned_and_read_in_chunks(folder: Path, tmp_path: Path) -> None:
    sources = [folder / "a.safetensors", folder / "b.safetensors"]
    for method in ("nuslerp", "model_stock"):
        report = merge_files(sources, tmp_path / "out", method=method, base=folder / "base.safetensors", dry_run=True)
        assert report.memory < 36 * 2**20  # 48 MiB of inputs in float64


def test_a_mean_of_many_models_takes_about_the_memory_of_that_of_a_few(tmp_path: Path) -> None:
    for index in range(40):
        ws.save_checkpoint({"w": torch.full((2**19,), float(index)).bfloat16()}, tmp_path / f"{index}.safetensors")
    options: dict[str, Any] = {
        "output": OutputOptions(hashes=False),
        "execution": ExecutionOptions(threads=1, fsync=False),
    }
    taken = {}
    for count in (8, 8, 40):  # the first one imports what it needs
        before, peak = private_memory(), [0]
        with sampled(peak):
            merge_files([tmp_path / f"{index}.safetensors" for index in range(count)], tmp_path / "out", **options)
        taken[count] = peak[0] - before
    assert taken[40] < taken[8] + 2**25
    assert torch.equal(ws.load_checkpoint(tmp_path / "out")["w"].unique(), torch.tensor([19.5]).bfloat16())
