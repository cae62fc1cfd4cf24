"""Distributed checkpoints of torch, read as torch reads them."""

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

import weightspace as ws
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError

SHARDED = Path(__file__).parent / "sharded"

pytestmark = pytest.mark.filterwarnings("ignore::weightspace.errors.WeightspaceWarning", "ignore::UserWarning")


def save(state: dict[str, Any], folder: Path) -> Path:
    """Save a state dict in this process."""
    save_dcp(state, checkpoint_id=folder, no_dist=True)
    return folder


def change(folder: Path, edit: Callable[[Metadata], None]) -> Path:
    """Edit the metadata of a checkpoint."""
    content = pickle.loads((folder / ".metadata").read_bytes())
    edit(content)
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    return folder


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(bits[0], bits[1])


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    """Return a checkpoint of one matrix."""
    return save({"model": {"w": torch.arange(12.0).view(3, 4)}}, tmp_path / "simple")


@pytest.mark.parametrize("name", ["fsdp1", "fsdp2"])
def test_shards_of_several_processes_are_put_together(name: str) -> None:
    full = torch.load(SHARDED / f"{name}.pt")
    state = ws.load_checkpoint(SHARDED / name)
    assert state.keys() == full.keys()
    assert all(same(state[key], full[key]) for key in full)


@pytest.mark.parametrize("name", ["fsdp1", "fsdp2"])
def test_every_range_of_a_sharded_tensor_is_read(name: str) -> None:
    full, contents = torch.load(SHARDED / f"{name}.pt"), read_contents(SHARDED / name)
    assert contents.pieces
    for key in contents.pieces:
        stored, elements = CheckpointReader(contents).stored(key), full[key].reshape(-1)
        assert stored is not None
        for start in range(len(elements)):
            for stop in range(start, len(elements) + 1):
                assert torch.equal(stored.read(start, stop), elements[start:stop])


def test_all_dtypes_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    values = torch.linspace(-3, 3, 24).view(4, 6)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int8]
    model = {str(kind): values.to(kind) for kind in [*kinds, torch.uint16, torch.int64]}
    model |= {"scalar": torch.tensor(3), "empty": torch.empty(0, 3), "transposed": values.T, "view": values[1:, 2:]}
    folder = save({"model": model, "optim": {"state": {"w": torch.ones(2)}}, "step": 7}, tmp_path / "all")
    dcp_to_torch_save(folder, tmp_path / "all.pt")
    wanted = torch.load(tmp_path / "all.pt", weights_only=False)["model"]
    state = ws.load_checkpoint(folder)
    assert list(state) == list(wanted)
    assert all(same(state[key], wanted[key]) for key in wanted)


def test_tensors_of_the_optimizer_are_left_out_and_said(tmp_path: Path) -> None:
    state = {"app": {"model": {"w": torch.ones(2)}, "optim": {"state": {"w": {"exp_avg": torch.ones(2)}}}}, "step": 3}
    (note,) = read_contents(save(state, tmp_path / "a")).notes
    assert "its 1 tensor under 'app.model' are taken" in note
    assert "Left out: 1 optimizer tensor; 1 object (step)." in note


def test_an_average_beside_the_model_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    folder = save({"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}, tmp_path / "a")
    assert any("'ema'" in note and "--key ema" in note for note in read_contents(folder).notes)
    assert ws.load_checkpoint(folder)["w"].tolist() == [1, 1]
    assert ws.load_checkpoint(folder, key="ema")["w"].tolist() == [0, 0]


def test_two_networks_without_usual_names_are_a_question(tmp_path: Path) -> None:
    folder = save({"actor": {"w": torch.ones(2)}, "critic": {"w": torch.zeros(2)}}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"'actor', 'critic'.*--key"):
        ws.load_checkpoint(folder)
    assert list(ws.load_checkpoint(folder, key="")) == ["actor.w", "critic.w"]


def test_flat_names_lose_only_the_optimizer(tmp_path: Path) -> None:
    flat = {"decoder.w": torch.ones(2), "optimizer.state.exp_avg.decoder.w": torch.zeros(2)}
    assert list(ws.load_checkpoint(save(flat, tmp_path / "a"))) == ["decoder.w"]


@pytest.mark.parametrize("path", [SHARDED / "fsdp2", SHARDED.parent / "deepspeed" / "stage3"])
def test_planning_imports_no_torch(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from weightspace.checkpoints.read_metadata import read_contents;"
        f"read_contents(Path({str(path)!r})); print({{'torch', 'numpy'}} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"


class Attack:
    """An object whose pickle calls ``os.system``."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch hacked",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_that_calls_a_function_is_refused(simple: Path, protocol: int, monkeypatch: Any) -> None:
    monkeypatch.chdir(simple)
    (simple / ".metadata").write_bytes(pickle.dumps({"x": Attack()}, protocol))
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read: it needs code to be run \(posix\.system\)"):
        ws.load_checkpoint(simple)
    assert not (simple / "hacked").exists()


HOSTILE = {
    "a call of bytearray": (b"\x80\x04cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R.", "bytearray"),
    "nothing": (b"", "damaged"),
    "no pickle": (b"hello", "damaged"),
    "a number": (b"\x80\x04K\x01.", "found int, expected torch's Metadata"),
    "bytes without end": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated"),
    "deep tuples": (b"\x80\x04}(" + b")" + b"\x85" * 10**5 + b"Nu.", "nested more than"),
    "lists without end": (b"\x80\x04" + b"]" * 2**27 + b".", "more objects than fit"),
    "an unknown class": (pickle.dumps(Path("x"), 4).replace(b"pathlib", b"evillib"), "evillib"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_is_refused(simple: Path, case: str) -> None:
    content, reason = HOSTILE[case]
    (simple / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        ws.load_checkpoint(simple)


def _index(metadata: Metadata) -> MetadataIndex:
    return next(iter(metadata.storage_data))


def _matrix(metadata: Metadata) -> TensorStorageMetadata:
    matrix = metadata.state_dict_metadata["model.w"]
    assert isinstance(matrix, TensorStorageMetadata)
    return matrix


def _moved(metadata: Metadata) -> None:
    metadata.storage_data[_index(metadata)].relative_path = "../other.distcp"


def _compressed(metadata: Metadata) -> None:
    metadata.storage_data[_index(metadata)].transform_descriptors = ["zstd"]


def _longer(metadata: Metadata) -> None:
    metadata.storage_data[_index(metadata)].length += 10**9


def _shifted(metadata: Metadata) -> None:
    metadata.storage_data[_index(metadata)].offset += 8
    metadata.storage_data[_index(metadata)].length -= 8


def _larger(metadata: Metadata) -> None:
    _matrix(metadata).size = torch.Size((5, 4))


def _smaller(metadata: Metadata) -> None:
    _matrix(metadata).size = torch.Size((2, 4))


def _other_dtype(metadata: Metadata) -> None:
    _matrix(metadata).properties.dtype = torch.int32


def _other_chunk(metadata: Metadata) -> None:
    _matrix(metadata).chunks[0].sizes = torch.Size((3, 3))


def _twice(metadata: Metadata) -> None:
    chunk = ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((3, 4)))
    _matrix(metadata).chunks.append(chunk)


def _nowhere(metadata: Metadata) -> None:
    metadata.storage_data = {}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_moved, "expected the name of a file beside it"),
        (_compressed, "compressed or encrypted"),
        (_longer, "Did every rank finish writing"),
        (_shifted, "damaged|doesn't begin like"),
        (_larger, "its 1 pieces have 12 of 20 elements"),
        (_smaller, "lies outside the shape"),
        (_other_dtype, "promises I32"),
        (_other_chunk, r"promises F32 \(3, 3\)"),
        (_twice, "overlap"),
        (_nowhere, "doesn't say where"),
    ],
)
def test_metadata_that_contradicts_the_files_is_refused(
    simple: Path, edit: Callable[[Metadata], None], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_contents(change(simple, edit))


def test_a_missing_or_short_file_is_refused(simple: Path) -> None:
    shard = simple / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="Did every rank finish writing"):
        read_contents(simple)
    shard.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_contents(simple)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_part_given_as_the_checkpoint_leads_to_its_folder(simple: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is a part of a distributed checkpoint .* Name its folder"):
        ws.load_checkpoint(simple / name)


def test_tied_weights_are_found_by_their_place(simple: Path) -> None:
    def tie(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.v"] = metadata.state_dict_metadata["model.w"]
        metadata.planner_data["model.v"] = ("model", "v")
        (index,) = metadata.storage_data
        metadata.storage_data[MetadataIndex("model.v", index.offset)] = metadata.storage_data[index]

    assert read_contents(change(simple, tie)).tied == {"v": "w"}


def test_nothing_is_lost_in_a_merge_and_nothing_else_is_copied(tmp_path: Path) -> None:
    folders = [save({"model": {"w": torch.full((3, 4), value)}}, tmp_path / str(value)) for value in (1.0, 3.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ws.merge_files(folders, tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["README.md", "model.safetensors"]
    assert ws.load_checkpoint(tmp_path / "merged")["w"].unique().tolist() == [2]
