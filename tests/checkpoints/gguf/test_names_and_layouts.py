"""GGUF files read under Hugging Face names and in its layout, against transformers and the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf_models
import numpy as np
import pytest
import torch

import weightspace as ws
from weightspace.checkpoints.gguf.name_maps import FAMILIES
from weightspace.errors import CheckpointError


@pytest.mark.parametrize("family", gguf_models.FAMILIES)
def test_a_gguf_file_reads_as_the_folder_that_it_was_converted_from(family: str, tmp_path: Path) -> None:
    state = gguf_models.folder(tmp_path / "folder", family)
    found = ws.load_checkpoint(gguf_models.write_gguf(tmp_path / "a.gguf", state, family))
    assert found.keys() == state.keys() == ws.load_checkpoint(tmp_path / "folder").keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
@torch.no_grad()
def test_transformers_computes_the_same_from_the_file_as_from_what_is_read(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = gguf_models.network(family)
    state = gguf_models.folder(tmp_path / "folder", family)
    gguf_models.write_gguf(tmp_path / "a.gguf", state, family)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", config=model.config)
    own = gguf_models.network(family, seed=1)
    missing = own.load_state_dict(ws.load_checkpoint(tmp_path / "a.gguf"), strict=False).missing_keys
    assert missing == (["lm_head.weight"] if family.startswith("gemma") else [])
    ids = torch.arange(24)[None] * 5 % gguf_models.VOCABULARY
    logits = own(ids).logits
    assert torch.equal(logits, theirs.eval()(ids).logits)
    assert torch.equal(logits, model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_the_gguf_package_and_go_back(family: str) -> None:
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    theirs = gguf.get_tensor_name_map(architecture, 3)
    state = gguf_models.folder_names(family)
    for name in state:
        found = FAMILIES[family].gguf_name(name)
        assert found == theirs.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is None or FAMILIES[family].hf_name(found) == name
        assert found is not None or (name == "lm_head.weight" and family.startswith("gemma"))


def write_unet(path: Path, state: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write tensors as ComfyUI-GGUF does: kernels in rows of 256 elements, and fields with their shapes."""
    writer = gguf.GGUFWriter(path, "sdxl")
    for name, tensor in state.items():
        values = tensor.numpy()
        if name in shapes:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shapes[name]))
            values = values.reshape(-1, 256)
        kind = gguf.GGMLQuantizationType.Q8_0 if name in shapes else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kernels(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (32, 16, 3, 3), "patch_embedding.weight": (8, 4, 1, 2, 2)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_kernels_that_comfyui_stored_in_rows_keep_their_shapes_in_merges(suffix: str, tmp_path: Path) -> None:
    states = [kernels(seed) for seed in range(3)]
    rows = {"conv.weight": (32, 16, 3, 3)}
    files = [write_unet(tmp_path / f"{seed}.gguf", state, rows) for seed, state in enumerate(states[:2])]
    files.append(tmp_path / "2.safetensors")
    ws.save_checkpoint(states[2], files[2])
    ws.merge_files(files, tmp_path / f"out.{suffix}", dtype="float32")
    found = ws.load_checkpoint(tmp_path / f"out.{suffix}")
    for name, tensor in found.items():
        mean = sum(state[name] for state in states) / 3
        torch.testing.assert_close(tensor, mean, rtol=0, atol=0.02, msg=name)  # that of Q8_0
    if suffix == "gguf":
        reader = gguf.GGUFReader(tmp_path / "out.gguf")
        assert reader.fields["comfy.gguf.orig_shape.conv.weight"].contents() == list(rows["conv.weight"])
        assert [list(own.shape) for own in reader.tensors] == [[256, 18], [2, 2, 1, 4, 8]]


@pytest.mark.parametrize("shape", [(32, 16, 3), (-32, 16, -3, 3)])
def test_a_shape_that_does_not_fit_the_stored_rows_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    file = write_unet(tmp_path / "a.gguf", kernels(0), {"conv.weight": shape})
    with pytest.raises(CheckpointError, match=r"expected as many elements"):
        ws.load_checkpoint(file)
