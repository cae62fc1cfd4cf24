"""Mixtures of experts of transformers: router and experts are one group, however the library computes them."""

from typing import Any

import pytest
import torch

from weightspace.matching import weight_matching
from weightspace.symmetry import Permutation, derive_spec, permute
from weightspace.symmetry.pattern import Units

transformers = pytest.importorskip("transformers")

_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 31,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DEEPSEEK: dict[str, Any] = {
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
#: Architecture -> its options, and the tensor of the router.
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "Mixtral": ({"num_local_experts": 4}, "mlp.gate.weight"),
    "Qwen2Moe": (
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
        "mlp.gate.weight",
    ),
    "GptOss": (
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "layer_types": ["full_attention"]},
        "mlp.router.weight",
    ),
    "DeepseekV3": (_DEEPSEEK | {"n_group": 2, "topk_group": 1}, "mlp.gate.weight"),
}


def _built(name: str, implementation: str | None = None) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    options, _ = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**_SMALL, **options))
    for parameter in model.parameters():  # some routers start at nought, and all experts would tie
        torch.nn.init.normal_(parameter, std=0.3)
    if implementation:
        model.set_experts_implementation(implementation)
    return model.eval(), (torch.randint(3, 31, (1, 7)),)


@pytest.mark.parametrize("name", MODELS)
def test_experts_move_with_the_rows_of_their_router(name: str) -> None:
    model, args = _built(name)
    spec = derive_spec(model, args)
    router = spec.axes[f"model.layers.0.{MODELS[name][1]}"]
    experts = spec.axes["model.layers.0.mlp.experts.down_proj"]
    assert spec.frozen == ()
    assert spec.shape(f"model.layers.0.{MODELS[name][1]}")[0] == 4
    assert "Units" in str(router[0])
    assert router[0] == experts[0]
    assert any(isinstance(axis, Units) and axis.inner for axis in experts)  # the hidden units of each for itself
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    planted = Permutation.random(spec, seed=1)
    matching = weight_matching(spec, state, permute(spec, planted, state))
    assert matching.l2_reduction == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_implementation_of_experts_does_not_matter_and_is_not_changed(implementation: str) -> None:
    model, args = _built("Mixtral", implementation)
    spec = derive_spec(model, args)
    assert spec.digest == derive_spec(*_built("Mixtral")).digest
    assert model.config._experts_implementation == implementation
