"""Distributed checkpoints that this library writes, loaded by torch."""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_loader import load

import weightspace as ws
from weightspace.checkpoints import load_metadata
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.errors import CheckpointError, WeightspaceError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def state() -> dict[str, torch.Tensor]:
    """Return tensors of several dtypes and layouts, two of them tied."""
    values = torch.linspace(-2, 2, 20).view(4, 5)
    kinds = [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.bool, torch.uint16, torch.complex64]
    tied = values.clone()
    plain = {f"layer.{kind}": values.to(kind) for kind in kinds}
    return {**plain, "t": values.T, "scalar": torch.tensor(2), "none": torch.empty(0, 2), "tied": tied, "again": tied}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(bits[0], bits[1])


def test_torch_loads_every_tensor(tmp_path: Path) -> None:
    wanted = state()
    ws.save_checkpoint(wanted, tmp_path / "a.dcp")
    loaded = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in wanted.items()}
    load(loaded, storage_reader=FileSystemReader(tmp_path / "a.dcp"), planner=DefaultLoadPlanner(), no_dist=True)
    dcp_to_torch_save(tmp_path / "a.dcp", tmp_path / "a.pt")
    converted = torch.load(tmp_path / "a.pt")
    for name, tensor in wanted.items():
        assert same(loaded[name], tensor)
        assert same(converted[name], tensor)


def test_what_is_written_is_read_with_its_ties_and_metadata(tmp_path: Path) -> None:
    wanted = state()
    ws.save_checkpoint(wanted, tmp_path / "a.dcp", metadata={"note": "ü"})
    read = ws.load_checkpoint(tmp_path / "a.dcp")
    assert list(read) == list(wanted)
    assert all(same(read[name], wanted[name]) for name in wanted)
    assert read["again"] is read["tied"]
    assert read_contents(tmp_path / "a.dcp").notes == ()
    assert load_metadata(tmp_path / "a.dcp") == {"note": "ü"}


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.dcp", "b.dcp"):
        ws.save_checkpoint(state(), tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a.dcp").iterdir())
    assert names == [".metadata", "__0_0.distcp", "weightspace.json"]
    assert all((tmp_path / "a.dcp" / name).read_bytes() == (tmp_path / "b.dcp" / name).read_bytes() for name in names)


def test_a_merge_into_dcp_is_that_into_safetensors_and_can_be_reproduced(tmp_path: Path) -> None:
    for seed in (0, 1):
        tensors = {"w": torch.randn(30, 40, generator=torch.Generator().manual_seed(seed))}
        ws.save_checkpoint(tensors, tmp_path / f"{seed}.safetensors")
    sources = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    report = ws.merge_files(sources, tmp_path / "merged.dcp")
    ws.merge_files(sources, tmp_path / "merged.safetensors")
    assert report.files == ("merged.dcp",)
    assert same(*(ws.load_checkpoint(tmp_path / f"merged.{ending}")["w"] for ending in ("dcp", "safetensors")))
    assert ws.reproduce(tmp_path / "merged.dcp").equal
    ws.merge_files(sources, tmp_path / "merged.dcp", weights=[1, 3])  # replaces its own output
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_only_folders_that_it_wrote_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "a.dcp"
    ws.save_checkpoint(state(), folder)
    ws.save_checkpoint(state(), folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds 'notes.txt'.*would be lost"):
        ws.save_checkpoint(state(), folder)
    (folder / "notes.txt").unlink()
    (folder / "weightspace.json").unlink()
    with pytest.raises(CheckpointError, match="didn't write and would be lost"):
        ws.save_checkpoint(state(), folder)
    (tmp_path / "b.dcp").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file"):
        ws.save_checkpoint(state(), tmp_path / "b.dcp")


def test_quantised_weights_are_not_written(tmp_path: Path) -> None:
    ws.save_checkpoint({"layers.0.q.weight": torch.ones(4, 4)}, tmp_path / "a.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: linear\nquantise: fp8-tensor\nmodels:\n- model: {tmp_path / 'a.safetensors'}\n"
        "  parameters: {weight: 1}\n"
    )
    with pytest.raises(WeightspaceError, match="quantised weights are written as safetensors"):
        ws.merge_files(recipe, tmp_path / "out.dcp")
