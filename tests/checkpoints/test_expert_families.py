"""Files with separate experts, and networks that stack them: every family of the maps, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.name_maps.expert_layout import expert_layout
from weightspace.checkpoints.name_maps.named_maps import built_in, read_name_maps
from weightspace.merging import ReadingOptions

transformers = pytest.importorskip("transformers", minversion="5")

#: Sizes under the names of all families; each reads its own.
SIZES: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4},
    **{"num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "moe_intermediate_size": 8},
    **{"shared_expert_intermediate_size": 8, "n_shared_experts": 1, "first_k_dense_replace": 0, "n_group": 1},
    **{"topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    **{"v_head_dim": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False},
}

OWN: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
}

FAMILIES = {
    **dict.fromkeys(["olmoe", "glm4_moe", "jamba"], "experts"),
    **{"mixtral": "experts-mixtral", "minimax_m2": "experts-mixtral", "phimoe": "experts-phimoe"},
    **{"lfm2_moe": "experts-lfm2", "exaone_moe": "experts-exaone", "ernie4_5_moe": "experts-ernie"},
}


def network_of(family: str, seed: int) -> Any:
    own = {"use_mamba_kernels": False, "mamba_d_state": 4} if family == "jamba" else {}
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **OWN.get(family, {}), **own})
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config)


def check_equal(found: StateDict, expected: StateDict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def convert(path: Path, names: str, out: Path) -> StateDict:
    ws.merge_files([path], out, method="passthrough", reading=ReadingOptions(names=names))
    return ws.load_checkpoint(out)


def test_every_built_in_map_of_experts_has_a_family_here() -> None:
    assert {name for name in built_in() if name.startswith("experts")} == {*FAMILIES.values(), "experts-gpt-oss"}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_stored_fused_and_separately_merge(family: str, tmp_path: Path) -> None:
    name = FAMILIES[family]
    networks = [network_of(family, seed) for seed in (0, 1)]
    for seed, network in enumerate(networks):
        network.save_pretrained(tmp_path / f"separate{seed}")
    separate = [ws.load_checkpoint(tmp_path / f"separate{seed}") for seed in (0, 1)]
    fused = convert(tmp_path / "separate1", f"{name}=fused", tmp_path / "fused1")
    check_equal(fused, networks[1].state_dict())
    check_equal(convert(tmp_path / "fused1", f"{name}=split", tmp_path / "back"), separate[1])
    layout = expert_layout({key: tuple(tensor.shape) for key, tensor in fused.items()}, separate[1])
    check_equal(layout.stacked(separate[1]), fused)
    check_equal(layout.separate(fused), separate[1])

    with pytest.raises(ws.CheckpointError, match=f"The name map {name} brings them together"):
        ws.merge_files([tmp_path / "separate0", tmp_path / "fused1"], tmp_path / "merged", lenient=True)
    ws.merge_files([tmp_path / "separate0", tmp_path / "separate1"], tmp_path / "expected")
    reading = ReadingOptions(names=name)
    ws.merge_files([tmp_path / "separate0", tmp_path / "fused1"], tmp_path / "merged", reading=reading)
    check_equal(ws.load_checkpoint(tmp_path / "merged"), ws.load_checkpoint(tmp_path / "expected"))
    ws.merge_files([tmp_path / "fused1", tmp_path / "separate0"], tmp_path / "merged-fused", reading=reading)
    expected = convert(tmp_path / "expected", f"{name}=fused", tmp_path / "expected-fused")
    check_equal(ws.load_checkpoint(tmp_path / "merged-fused"), expected)


def test_no_family_belongs_to_two_maps() -> None:
    maps = read_name_maps([name for name in built_in() if name.startswith("experts")])
    families = [family for one in maps for family in one.model_types]
    assert len(families) == len(set(families))


def test_experts_without_biases_are_not_taken_for_those_of_gpt_oss() -> None:
    # Transposed, but not interleaved, as in Llama 4: no map knows them.
    shapes = {"mlp.experts.gate_up_proj": (2, 8, 6), "mlp.experts.down_proj": (2, 3, 8)}
    state = {
        f"mlp.experts.{expert}.{part}_proj.weight": torch.zeros((8, 3) if part == "down" else (3, 8))
        for expert in range(2)
        for part in ("gate", "up", "down")
    }
    assert not expert_layout(shapes, state).stacks
