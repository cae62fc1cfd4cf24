"""Checkpoints saved and loaded again: every dtype, every shape, every format."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from weightspace.checkpoints import StateDict, load_checkpoint, load_metadata, save_checkpoint
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.safetensors_header import ITEMSIZES, read_header
from weightspace.errors import CheckpointError

PATHS = ("model.safetensors", "model.pt", "model.pth", "model.bin", "folder")
SHAPES = ((), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5))


def assert_same(found: StateDict, expected: StateDict) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].tolist() == tensor.tolist(), name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_and_shape_comes_back(path: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {f"t{shape}": torch.randint(0, 2, shape).to(dtype) for shape in SHAPES}
    save_checkpoint(state, tmp_path / path)
    assert_same(load_checkpoint(tmp_path / path), state)


@pytest.mark.parametrize("path", PATHS)
def test_special_values_views_and_the_order_of_names_come_back(path: str, tmp_path: Path) -> None:
    grid = torch.arange(12.0).reshape(3, 4)
    state = {
        "z": torch.tensor([float("inf"), -0.0, 1e-45]),
        "odd bool": torch.tensor([True, False, True]),
        "transposed": grid.T,
        "expanded": torch.ones(1).expand(4),
        "row": grid[1],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "a é ✓": torch.ones(3, dtype=torch.float64),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    save_checkpoint(state, tmp_path / path)
    loaded = load_checkpoint(tmp_path / path)
    assert_same(loaded, state)
    assert not loaded["parameter"].requires_grad


@pytest.mark.parametrize("path", PATHS)
def test_tied_tensors_come_back_tied(path: str, tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    state = {
        "embed": weight,
        "other": weight.clone(),
        "head": weight,
        "view": weight.view(4, 3),
        "part": weight[:2],
    }
    save_checkpoint(state, tmp_path / path)
    loaded = load_checkpoint(tmp_path / path)
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }
    loaded["embed"][0, 0] = 100.0
    assert loaded["head"][0, 0] == loaded["view"][0, 0] == 100.0
    assert loaded["other"][0, 0] != 100.0
    assert loaded["part"][0, 0] != 100.0


def test_a_tied_tensor_is_stored_once_under_its_first_name_for_other_readers(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    save_checkpoint({"embed": weight, "head": weight}, tmp_path / "a.safetensors")
    assert list(safetensors.torch.load_file(tmp_path / "a.safetensors")) == ["embed"]


def test_another_library_reads_our_file_and_we_read_its(state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "ours.safetensors", metadata={"a": "1"})
    theirs = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert_same({name: theirs[name] for name in state}, state)
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors", metadata={"b": "2"})
    loaded = load_checkpoint(tmp_path / "theirs.safetensors")
    assert_same({name: loaded[name] for name in state}, state)
    assert load_metadata(tmp_path / "theirs.safetensors") == {"b": "2"}


@pytest.mark.parametrize("name", ["a.pt", "a.bin"])
def test_torch_reads_our_torch_file_as_a_plain_dict(name: str, state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / name, metadata={"a": "1"})
    assert_same(torch.load(tmp_path / name, weights_only=True), state)


@pytest.mark.parametrize("path", PATHS)
def test_metadata_comes_back(path: str, state: StateDict, tmp_path: Path) -> None:
    metadata = {"method": "linear", "note": "ünïcode \n lines"}
    save_checkpoint(state, tmp_path / path, metadata=metadata)
    found = load_metadata(tmp_path / path)
    assert {name: found[name] for name in metadata} == metadata
    assert set(found) - set(metadata) <= {"format"}


@pytest.mark.parametrize("path", PATHS)
def test_equal_states_give_equal_bytes(path: str, state: StateDict, tmp_path: Path) -> None:
    written = []
    for run in ("one", "two"):
        out = tmp_path / run / path
        save_checkpoint({**state, "tied": state["layer.weight"]}, out, metadata={"b": "1", "a": "2"})
        written.append((out / "model.safetensors" if out.is_dir() else out).read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("path", PATHS)
def test_a_loaded_tensor_is_mapped_and_changing_it_leaves_the_file_alone(path: str, tmp_path: Path) -> None:
    save_checkpoint({"w": torch.zeros(4)}, tmp_path / path)
    load_checkpoint(tmp_path / path)["w"].fill_(1.0)
    assert load_checkpoint(tmp_path / path)["w"].tolist() == [0.0] * 4


def test_safetensors_tensors_start_at_a_multiple_of_their_item_size(tmp_path: Path) -> None:
    state = {"b": torch.ones(3, dtype=torch.bool), "h": torch.ones(3).half(), "d": torch.ones(1).double()}
    save_checkpoint(state, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert list(header.entries) == ["b", "h", "d"]
    assert all(entry.start % ITEMSIZES[entry.dtype] == 0 for entry in header.entries.values())


@pytest.mark.parametrize("path", PATHS)
def test_a_file_can_be_replaced_by_what_was_read_from_it(path: str, state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / path)
    save_checkpoint(load_checkpoint(tmp_path / path), tmp_path / path)
    assert_same(load_checkpoint(tmp_path / path), state)


def test_a_view_of_a_large_tensor_is_saved_without_the_rest(tmp_path: Path) -> None:
    save_checkpoint({"w": torch.zeros(100_000)[:2]}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000


def test_saving_leaves_state_and_metadata_unchanged(state: StateDict, tmp_path: Path) -> None:
    metadata = {"a": "1"}
    copy = {name: tensor.clone() for name, tensor in state.items()}
    save_checkpoint(state, tmp_path / "a.safetensors", metadata=metadata)
    assert_same(state, copy)
    assert metadata == {"a": "1"}


BAD_STATES = {
    "no tensors": ({}, "no tensors"),
    "a list": ({"w": [1.0]}, "'w' is a list"),
    "a number as name": ({3: torch.ones(1)}, "found 3 of type int"),
    "sparse": ({"w": torch.eye(2).to_sparse()}, "'w' is sparse"),
    "meta": ({"w": torch.empty(2, device="meta")}, "'w' is without data"),
    "complex128": ({"w": torch.ones(1, dtype=torch.complex128)}, "'w' has dtype complex128"),
    "not Unicode": ({"\ud800": torch.ones(1)}, "not valid Unicode"),
    "reserved name": ({"__metadata__": torch.ones(1)}, "'__metadata__'"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_that_cannot_be_stored_is_refused_by_name(case: str, tmp_path: Path) -> None:
    bad, message = BAD_STATES[case]
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(bad, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"weightspace.tied": "{}"}])
def test_metadata_that_is_not_strings_is_refused(metadata: dict, state: StateDict, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="strings"):
        save_checkpoint(state, tmp_path / "a.safetensors", metadata=metadata)
