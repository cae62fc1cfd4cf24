"""Tensors read from their places in files, without mapping them."""

import os
import resource
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.open_files import OpenFiles
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError


def state() -> StateDict:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 40, generator=generator)
    return {
        "matrix": matrix,
        "half": matrix.bfloat16(),
        "turned": matrix.double().t(),
        "channels_last": torch.randn(4, 3, 5, 6, generator=generator).contiguous(memory_format=torch.channels_last),
        "part": matrix[3:9, 10:20],
        "repeated": torch.tensor([[1.5], [2.5]]).expand(2, 7),
        "complex": torch.view_as_complex(matrix.clone().view(30, 20, 2)),
        "count": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
    }


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "folder"])
def test_whole_tensors_and_ranges_are_those_of_load_checkpoint(name: str, tmp_path: Path) -> None:
    ws.save_checkpoint(state(), tmp_path / name)
    reader = CheckpointReader(read_contents(tmp_path / name))
    for key, expected in ws.load_checkpoint(tmp_path / name).items():
        found = reader[key]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected), key
        stored = reader.stored(key)
        if stored is not None:
            flat = (torch.view_as_real(expected) if expected.is_complex() else expected).reshape(-1)
            assert stored.shape == (torch.view_as_real(expected) if expected.is_complex() else expected).shape
            assert torch.equal(stored.read(1, len(flat)), flat[1:]) if len(flat) else True


def test_tensors_of_torch_files_are_read_from_their_places_too(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "views.pt")  # views, as a training script saves them
    contents = read_contents(tmp_path / "views.pt")
    reader = CheckpointReader(contents)
    reader._loaded = {}  # type: ignore[assignment]  # nothing may be loaded
    for key, expected in ws.load_checkpoint(tmp_path / "views.pt").items():
        if expected.numel():
            assert torch.equal(reader[key], expected), key
    assert contents.places["turned"].strides == (1, 40)


def test_an_old_torch_file_is_loaded_as_always(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    contents = read_contents(tmp_path / "old.pt")
    assert not contents.places
    assert torch.equal(CheckpointReader(contents)["w"], torch.arange(6.0))


def test_all_tensors_come_tied_as_they_were(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    ws.save_checkpoint({"a": shared, "b": torch.ones(2), "c": shared}, tmp_path / "m.safetensors")
    found = CheckpointReader(read_contents(tmp_path / "m.safetensors")).state()
    assert found["a"] is found["c"]
    assert list(found) == list(ws.load_checkpoint(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_a_file_that_has_become_shorter_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ws.save_checkpoint({"a": torch.randn(1000), "b": torch.randn(1000)}, path)
    reader = CheckpointReader(read_contents(path))
    expected = reader["a"]
    os.truncate(path, path.stat().st_size - 3000)
    assert torch.equal(reader["a"], expected)
    with pytest.raises(CheckpointError, match=rf"{name} ends at byte .* has become shorter"):
        _ = reader["b"]


def test_more_files_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    ws.save_checkpoint({"w": torch.arange(3.0)}, tmp_path / "0.safetensors")
    readers, files = [], OpenFiles()
    for number in range(40):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes((tmp_path / "0.safetensors").read_bytes())
        readers.append(CheckpointReader(read_contents(path), files))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    try:
        assert all(torch.equal(reader["w"], torch.arange(3.0)) for reader in readers for _ in range(2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
