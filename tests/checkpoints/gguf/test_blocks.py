"""The values of GGUF blocks, read by any range, bit for bit those of the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import weightspace as ws
from weightspace.checkpoints.gguf.block_types import BY_NAME
from weightspace.checkpoints.gguf.dequantise import dequantise
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader

QUANTISED = [name for name, kind in BY_NAME.items() if kind.dtype is None]


def blocks(name: str, count: int) -> np.ndarray:
    """Return random blocks; those whose scale is no finite number are left out."""
    found = np.random.default_rng(0).integers(0, 256, (2 * count, BY_NAME[name].nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(found, gguf.GGMLQuantizationType[name])
    return found[np.isfinite(values).all(axis=1)][:count]


def test_sizes_are_those_of_the_gguf_package() -> None:
    for name, kind in BY_NAME.items():
        theirs = gguf.GGMLQuantizationType[name]
        assert (theirs.value, gguf.GGML_QUANT_SIZES[theirs]) == (kind.number, (kind.elements, kind.nbytes))


@pytest.mark.parametrize("name", QUANTISED)
def test_values_have_the_bits_of_the_gguf_package(name: str) -> None:
    stored = blocks(name, 200)
    assert len(stored) == 200
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[name])
    found = dequantise(torch.from_numpy(stored), name).numpy()
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_file_is_read_whole_and_by_ranges(name: str, tmp_path: Path) -> None:
    kind, shape = BY_NAME[name], (6, 512)
    theirs = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "unheard-of")
    if kind.dtype is None:
        stored = blocks(name, 6 * 512 // kind.elements).reshape(6, -1)
        expected = torch.from_numpy(gguf.dequantize(stored, theirs))
    else:
        expected = (torch.randn(shape) * 50).to(ws.checkpoints.dtypes.DTYPES[kind.dtype])
        stored = expected.view(torch.uint8).numpy()
    writer.add_tensor("first", np.zeros(3, dtype=np.float32))
    writer.add_tensor("w", stored, raw_dtype=theirs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.warns(ws.WeightspaceWarning, match=r"keep their GGUF names and layout, since the family 'unheard-of'"):
        found = ws.load_checkpoint(tmp_path / "a.gguf")["w"]
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    reader = CheckpointReader(read_contents(tmp_path / "a.gguf")).stored("w")
    assert reader is not None
    for start, stop in ((0, 0), (0, 3072), (1, 2), (255, 257), (500, 1600), (3071, 3072)):
        assert torch.equal(reader.read(start, stop), expected.flatten()[start:stop])


@pytest.mark.filterwarnings("ignore::weightspace.errors.WeightspaceWarning")
def test_what_ggml_quantises_has_the_values_that_ggml_reads() -> None:
    """A file of ggml's own quantisers, made by tests/data/gguf/make_ggml.py."""
    folder = Path(__file__).parents[2] / "data" / "gguf"
    found, expected = ws.load_checkpoint(folder / "ggml.gguf"), ws.load_checkpoint(folder / "expected.safetensors")
    original = expected.pop("original")
    assert found.keys() == expected.keys() == {*QUANTISED, "F16", "BF16"}
    for name, values in expected.items():
        assert torch.equal(found[name].float(), values), name
        assert (values - original).norm() < 0.4 * original.norm(), name
