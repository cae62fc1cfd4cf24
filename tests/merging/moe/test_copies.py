"""Copies of one dense model as experts compute what it computes, in every architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import moe_models as tiny
import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.merging import build_moe

transformers = pytest.importorskip("transformers", minversion="5")

#: Kind of the dense model, its configuration, and the keys of the recipe.
DENSE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {}),
    ("llama", {"num_key_value_heads": 4, "rope_theta": 500.0, "rms_norm_eps": 1e-3}, {"experts_per_token": 1}),
    ("llama", {"tie_word_embeddings": True}, {"gate_mode": "uniform_random"}),
    ("llama", {"head_dim": 6}, {"gate_mode": "cheap_embed"}),
    ("llama", {"hidden_act": "gelu"}, {"gate_mode": "hidden"}),
    ("mistral", {"sliding_window": 3}, {}),
    ("mistral", {"sliding_window": None}, {"gate_mode": "hidden_avg"}),
    ("qwen3", {}, {}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}, {}),
]

#: Kinds for Qwen MoE, whose shared expert adds to the others.
WITH_SHARED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("kind", "config", "keys"), DENSE)
def test_copies_of_one_expert_give_the_dense_models_logits(
    kind: str, config: dict[str, Any], keys: dict[str, Any]
) -> None:
    tiny.save_model(kind, 0, "a", **config)
    build_moe(tiny.write_recipe(experts=("a", "a", "a"), **keys), "out")
    torch.testing.assert_close(tiny.logits("out"), tiny.logits("a"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "config"), WITH_SHARED)
def test_in_qwen_moe_they_do_beside_a_silent_shared_expert(kind: str, config: dict[str, Any]) -> None:
    tiny.save_model(kind, 0, "a", **config)
    shared = [{"source_model": "a", "residual_scale": 0.0}]
    build_moe(tiny.write_recipe(experts=("a", "a"), shared_experts=shared, architecture="qwen"), "out")
    torch.testing.assert_close(tiny.logits("out"), tiny.logits("a"), rtol=1e-4, atol=1e-4)


def test_in_qwen_moe_the_shared_expert_is_weighed_by_its_gate() -> None:
    tiny.save_model("qwen2", 0, "a")
    shared = [{"source_model": "a", "positive_prompts": ["prove the theorem"]}]
    keys = {"gate_mode": "cheap_embed", "shared_experts": shared}
    build_moe(tiny.write_recipe(experts=("a", "a"), **keys), "out")
    state = ws.load_checkpoint("out")
    gate = state["model.layers.0.mlp.shared_expert_gate.weight"]
    assert torch.equal(gate[0], state["model.layers.0.mlp.gate.weight"][0])  # the prompts are the same

    model = transformers.AutoModelForCausalLM.from_pretrained("a")
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(_and_a_share(gate[0]))
    with torch.no_grad():
        expected = model(torch.arange(tiny.SIZES["vocab_size"])[None]).logits
    torch.testing.assert_close(tiny.logits("out"), expected, rtol=1e-4, atol=1e-4)


def _and_a_share(gate: Tensor) -> Callable[..., Tensor]:
    def add(_: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        return output + torch.sigmoid(arguments[0] @ gate)[..., None] * output

    return add


class DeepSeekLayer(nn.Module):
    """The MLP of the first DeepSeek MoE, by its paper (Dai et al. 2024, https://arxiv.org/abs/2401.06066)."""

    def __init__(self, dense: nn.Module, state: dict[str, Tensor], prefix: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.act = dense.act_fn
        self.state = state
        self.prefix = prefix
        self.config = config

    def _mlp(self, name: str, inputs: Tensor) -> Tensor:
        gate, up, down = (self.state[f"{self.prefix}.{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (self.act(inputs @ gate.T) * (inputs @ up.T)) @ down.T

    def forward(self, inputs: Tensor) -> Tensor:
        scores = (inputs @ self.state[f"{self.prefix}.gate.weight"].T).softmax(dim=-1)
        weights, chosen = scores.topk(self.config["num_experts_per_tok"], dim=-1)
        if self.config["num_experts_per_tok"] > 1 and self.config["norm_topk_prob"]:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        outputs = torch.stack(
            [self._mlp(f"experts.{expert}", inputs) for expert in range(self.config["n_routed_experts"])], dim=-2
        )
        picked = outputs.gather(-2, chosen[..., None].expand(*chosen.shape, inputs.shape[-1]))
        routed = (weights[..., None] * picked).sum(dim=-2)
        return routed + self._mlp("shared_experts", inputs) if self.config["n_shared_experts"] else routed


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_in_deepseek_moe_they_do_where_scales_sum_to_one(kind: str, scale: float | None) -> None:
    tiny.save_model(kind, 0, "a", **({"sliding_window": None} if kind == "mistral" else {}))
    recipe = tiny.write_recipe(experts=("a", "a"), architecture="deepseek")
    if scale is not None:
        experts = [{"source_model": "a", "residual_scale": 1 - scale}] * 2
        shared = [{"source_model": "a", "residual_scale": scale}]
        content = {"experts": experts, "shared_experts": shared, "architecture": "deepseek"}
        recipe = tiny.write_recipe(**content)
    build_moe(recipe, "out")
    state = ws.load_checkpoint("out")
    config = transformers.PretrainedConfig.get_config_dict("out")[0]
    assert config["model_type"] == "deepseek"
    assert config["auto_map"]["AutoModelForCausalLM"].endswith("modeling_deepseek.DeepseekForCausalLM")

    model = transformers.AutoModelForCausalLM.from_pretrained("a")
    inputs = torch.arange(tiny.SIZES["vocab_size"])[None]
    with torch.no_grad():
        expected = model(inputs).logits
        for number, layer in enumerate(model.model.layers):
            layer.mlp = DeepSeekLayer(layer.mlp, state, f"model.layers.{number}.mlp", config)
        own = {name: value for name, value in state.items() if ".mlp." not in name}
        assert not model.load_state_dict(own, strict=False).unexpected_keys
        torch.testing.assert_close(model(inputs).logits, expected, rtol=1e-4, atol=1e-4)
