"""Memory of merges against the plan, for methods that hold many copies, and for many models."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_merges import measure_merge, measuring_process

import weightspace as ws
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files

#: Two slices of 8 MB each in float32: their copies are far above what else a merge takes. And rows, and a vector.
SHAPES = {"slices": (2, 2048, 1024), "rows": (2048, 2048), "vector": (2**22,)}

#: A matrix whose singular vectors are found in less than a second: 2 MB in float32.
SQUARE = {"square": (704, 704)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("base", "a", "b", "c", "d")):
        for key, shape in (SHAPES | SQUARE).items():
            tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            ws.save_checkpoint({"experts": tensor.bfloat16()}, folder / f"{name}-{key}.safetensors")
    return folder


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with measuring_process() as process:
        yield process


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("method", "models", "parameters"),
    [
        ("nuslerp", "ab", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("nuslerp", "ab", {"nuslerp_flatten": False}),
        ("arcee_fusion", "a", {}),
        ("della", "ab", {"density": 0.5, "epsilon": 0.1}),
        ("della_linear", "ab", {"density": 0.5, "epsilon": 0.1}),
        ("model_stock", "ab", {"filter_wise": True}),
        ("ties", "ab", {"density": 0.5}),
        ("ties", "abcd", {"density": 0.5}),
        ("consensus", "abcd", {}),
        ("consensus", "abcd", {"inner": "ties", "density": 0.5}),
        ("tall_mask", "abcd", {"density": 0.5}),
        ("localize_and_stitch", "abcd", {"density": 0.5}),
    ],
    ids=str,
)
def test_a_merge_takes_no_more_memory_than_it_says(
    method: str,
    models: str,
    parameters: dict[str, Any],
    shape: str,
    folder: Path,
    tmp_path: Path,
    process: ProcessPoolExecutor,
) -> None:
    check_memory(method, models, parameters, shape, folder, tmp_path, process)


@pytest.mark.parametrize(
    ("method", "models", "parameters"),
    [
        ("svc", "ab", {}),
        ("optmerge", "ab", {"steps": 2}),
        ("optmerge", "abcd", {"steps": 2}),
    ],
    ids=str,
)
def test_a_merge_of_matrices_takes_no_more_memory_than_it_says(
    method: str, models: str, parameters: dict[str, Any], folder: Path, tmp_path: Path, process: ProcessPoolExecutor
) -> None:
    check_memory(method, models, parameters, "square", folder, tmp_path, process)


def check_memory(
    method: str,
    models: str,
    parameters: dict[str, Any],
    shape: str,
    folder: Path,
    tmp_path: Path,
    process: ProcessPoolExecutor,
) -> None:
    """Check that a merge from files takes less than its report says, base included."""
    sources = [folder / f"{model}-{shape}.safetensors" for model in models]
    base = folder / f"base-{shape}.safetensors"
    options: dict[str, Any] = {"method": method, "parameters": parameters, "base": base}
    options |= {
        "output": OutputOptions(hashes=False),
        "execution": ExecutionOptions(memory=2**32, threads=1, fsync=False),
    }
    taken, report = process.submit(measure_merge, sources, tmp_path / "out", options).result()
    assert taken < report.memory, f"{taken / 2**20:.1f} of {report.memory / 2**20:.1f} MiB"


def test_methods_without_slices_are_planned_and_read_in_chunks(folder: Path, tmp_path: Path) -> None:
    sources = [folder / "a-slices.safetensors", folder / "b-slices.safetensors"]
    base = folder / "base-slices.safetensors"
    for method in ("nuslerp", "model_stock"):
        report = merge_files(sources, tmp_path / "out", method=method, base=base, dry_run=True)
        assert report.memory < 36 * 2**20  # 48 MiB of inputs in float64


@pytest.mark.parametrize("shape", [(512, 512), (1024, 256)])
@pytest.mark.parametrize(
    ("method", "models"),
    [
        ("tsv_m", 1),
        ("tsv_m", 3),
        ("iso_c", 1),
        ("iso_cts", 1),
        ("knots", 3),
        ("core_space", 3),
        ("subspace_boosting", 1),
    ],
)
def test_singular_vectors_take_no_more_memory_than_they_say(
    method: str, models: int, shape: tuple[int, int], tmp_path: Path, process: ProcessPoolExecutor
) -> None:
    for seed in range(models + 1):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        ws.save_checkpoint({"w": tensor.bfloat16()}, tmp_path / f"{seed}.safetensors")
    sources = [tmp_path / f"{seed}.safetensors" for seed in range(1, models + 1)]
    options: dict[str, Any] = {
        "method": method,
        "base": tmp_path / "0.safetensors",
        "output": OutputOptions(hashes=False),
    }
    options["execution"] = ExecutionOptions(memory=2**32, threads=1, fsync=False)
    taken, report = process.submit(measure_merge, sources, tmp_path / "out", options).result()
    assert taken < report.memory < 10 * taken


def test_a_mean_of_many_models_takes_about_the_memory_of_that_of_a_few(
    tmp_path: Path, process: ProcessPoolExecutor
) -> None:
    for index in range(40):
        ws.save_checkpoint({"w": torch.full((2**19,), float(index)).bfloat16()}, tmp_path / f"{index}.safetensors")
    options: dict[str, Any] = {
        "output": OutputOptions(hashes=False),
        "execution": ExecutionOptions(threads=1, fsync=False),
    }
    taken = {}
    for count in (8, 40):
        sources = [tmp_path / f"{index}.safetensors" for index in range(count)]
        taken[count], _ = process.submit(measure_merge, sources, tmp_path / "out", options).result()
    assert taken[40] < taken[8] + 2**25
    assert torch.equal(ws.load_checkpoint(tmp_path / "out")["w"].unique(), torch.tensor([19.5]).bfloat16())
