"""The format of a file is in its bytes: names of training scripts are read, and what is something else is named."""

import json
from pathlib import Path

import pytest
import torch

from weightspace.checkpoints import StateDict, load_checkpoint, load_metadata, save_checkpoint
from weightspace.errors import CheckpointError

ENDINGS = (".pt", ".pth", ".bin", ".pth.tar", ".ckpt", ".th", ".pkl", ".model", ".PT", ".params", "")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_torch_file_is_read_under_any_name(ending: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / f"last{ending}"
    torch.save({"w": torch.arange(3.0)}, path, _use_new_zipfile_serialization=zipped)
    assert load_checkpoint(path)["w"].tolist() == [0.0, 1.0, 2.0]
    assert load_metadata(path) == {}


@pytest.mark.parametrize("name", ["a.bin", "a.ckpt", "a", "a.safetensors.part"])
def test_a_safetensors_file_is_read_under_any_name(name: str, state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "a.safetensors", metadata={"method": "linear"})
    (tmp_path / "a.safetensors").rename(tmp_path / name)
    assert list(load_checkpoint(tmp_path / name)) == list(state)
    assert load_metadata(tmp_path / name)["method"] == "linear"


def test_a_torch_file_that_is_called_safetensors_is_read_as_what_it_is(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    assert load_checkpoint(tmp_path / "a.safetensors")["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x8B1F, 0x10480])
def test_a_header_whose_length_begins_like_a_pickle_is_that_of_safetensors(
    length: int, ending: str, tmp_path: Path
) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    (tmp_path / f"a{ending}").write_bytes(length.to_bytes(8, "little") + header + torch.ones(1).numpy().tobytes())
    assert load_checkpoint(tmp_path / f"a{ending}")["w"].tolist() == [1.0]


FOREIGN = {
    "a damaged GGUF file": (b"GGUF\x03\x00\x00\x00", "the beginning ends at byte 24, but the file has 8"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html>404", "is a web page"),
    "a gzip archive": (b"\x1f\x8b\x08\x00", "is a gzip archive"),
    "text": (b"hello, world", "begins neither like a safetensors file nor like a torch, GGUF or flax file"),
    "nothing": (b"", "begins neither"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_of_another_kind_is_named(case: str, tmp_path: Path) -> None:
    content, message = FOREIGN[case]
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "model.ckpt")
    assert "\n" not in str(caught.value)
