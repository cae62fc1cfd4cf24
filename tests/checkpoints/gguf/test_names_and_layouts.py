"""GGUF files read under Hugging Face names and in its layout, against transformers and the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf_models
import pytest
import torch

import weightspace as ws
from weightspace.checkpoints.gguf.name_maps import FAMILIES


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
