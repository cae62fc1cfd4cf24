"""Experts are matched before a merge: planted orders of experts and of their hidden units are undone, in files too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints.name_maps.expert_layout import expert_layout
from weightspace.symmetry.streamed import InFloat64

transformers = pytest.importorskip("transformers", minversion="5")

EXPERTS = 4
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 31,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": EXPERTS},
    "Qwen2Moe": {"num_experts": EXPERTS, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "Qwen3Moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
    "GptOss": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "head_dim": 8},
    "DeepseekV3": {
        "moe_intermediate_size": 8,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "n_group": 1,
        "topk_group": 1,
    },
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save_model(name: str, path: str, **more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **OWN[name], **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for tensor in (*model.parameters(), *(one for name, one in model.named_buffers() if name.endswith("_bias"))):
        torch.nn.init.normal_(tensor, std=0.3)  # some routers start at 0, and all experts would tie
    model.save_pretrained(path)
    return model


def shuffled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reorder the experts of every layer of a file, and the hidden units of each of them, by hand."""
    torch.manual_seed(1)
    result = dict(state)
    for router in [name for name in state if name.endswith((".mlp.gate.weight", "_moe.gate.weight", "router.weight"))]:
        home, order = router.rsplit(".", 2)[0], torch.randperm(EXPERTS)
        for name in (name for name in state if name.startswith(router.removesuffix("weight"))):
            result[name] = state[name][order]
        if f"{home}.experts.gate_up_proj" in state:
            _shuffle_stacked(f"{home}.experts.", order, state, result)
        else:
            _shuffle_separate(f"{home}.experts.", order, state, result)
    return result


def _shuffle_separate(home: str, order: Tensor, state: Mapping[str, Tensor], result: dict[str, Tensor]) -> None:
    for new, old in enumerate(order.tolist()):
        down = next(part for part in ("w2", "down_proj") if f"{home}0.{part}.weight" in state)
        units = torch.randperm(state[f"{home}0.{down}.weight"].shape[1])
        for name in [name for name in state if name.startswith(f"{home}{old}.")]:
            part = name.removeprefix(f"{home}{old}.")
            moved = state[name][:, units] if part.startswith(down) else state[name][units]
            result[f"{home}{new}.{part}"] = moved.contiguous()


def _shuffle_stacked(home: str, order: Tensor, state: Mapping[str, Tensor], result: dict[str, Tensor]) -> None:
    """Do so for gpt-oss, whose gates and up-projections take turns in the last axis."""
    for name in [name for name in state if name.startswith(home)]:
        result[name] = state[name][order].clone()
    for expert in range(EXPERTS):
        units = torch.randperm(state[f"{home}down_proj"].shape[1])
        both = torch.stack([2 * units, 2 * units + 1], 1).flatten()
        result[f"{home}down_proj"][expert] = result[f"{home}down_proj"][expert][units]
        for name in ("gate_up_proj", "gate_up_proj_bias"):
            result[f"{home}{name}"][expert] = result[f"{home}{name}"][expert][..., both]


def logits(path: str) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).double()
    model.config._experts_implementation = "eager"
    with torch.no_grad(), InFloat64():
        return model(torch.arange(3, 20)[None]).logits


@pytest.mark.parametrize("name", OWN)
def test_a_merge_of_folders_undoes_planted_orders(name: str) -> None:
    save_model(name, "a")
    state = ws.load_checkpoint("a")
    ws.save_checkpoint(shuffled(state), "b", companions_from="a")
    torch.testing.assert_close(logits("b"), logits("a"), rtol=1e-10, atol=1e-10)
    command = "merge a b --align weight-matching --network transformers:a -o merged"
    result = CliRunner().invoke(cli.main, command.split())
    assert result.exit_code == 0, result.output
    merged = ws.load_checkpoint("merged")
    assert all(torch.equal(tensor, merged[key]) for key, tensor in state.items())
    assert list(merged) == list(state)


def test_the_matched_file_has_the_names_of_the_source() -> None:
    save_model("Mixtral", "a")
    state = ws.load_checkpoint("a")
    other = shuffled(state)
    network = ws.load_network("transformers:a")
    spec = ws.derive_spec(network.module, network.example_args)
    matching = ws.match(spec, state, other)
    target, aligned = matching.apply(state, other)
    assert target is state
    assert all(torch.equal(aligned[name], tensor) for name, tensor in state.items())
    full = ws.derive_spec(network.module, network.example_args, symmetry="full")
    canonical, moved = ws.match(full, state, other, "full-weights").apply(state, other)
    assert canonical.keys() == moved.keys() == state.keys()
    for key, tensor in canonical.items():
        torch.testing.assert_close(moved[key], tensor, rtol=1e-4, atol=1e-5)


def test_experts_of_a_group_move_with_their_group() -> None:
    save_model("DeepseekV3", "a", n_group=2)
    network = ws.load_network("transformers:a")
    spec = ws.derive_spec(network.module, network.example_args)
    assert spec.frozen == ()
    state = ws.load_checkpoint("a")
    moved = ws.permute(spec, ws.Permutation.random(spec, seed=1), state)
    ws.save_checkpoint(moved, "b", companions_from="a")
    torch.testing.assert_close(logits("b"), logits("a"), rtol=1e-10, atol=1e-10)
    _, aligned = ws.match(spec, state, moved).apply(state, moved)
    assert all(torch.equal(aligned[name], tensor) for name, tensor in state.items())


TASK = """
import torch, transformers

class Tokens:
    name, objective, example_args = "tokens", "loss", (torch.arange(3, 11)[None],)

    def network(self):
        return transformers.MixtralForCausalLM(transformers.MixtralConfig.from_pretrained("a"))

    def batches(self, split, seed):
        return iter(torch.randint(3, 31, (8, 9), generator=torch.Generator().manual_seed(seed)).split(4))

    def loss(self, module, batch):
        return module(batch, labels=batch).loss

    def score(self, module, split="test"):
        with torch.no_grad():
            return {"loss": float(self.loss(module, next(self.batches(split, 0))))}

task = Tokens()
"""


@pytest.mark.filterwarnings("ignore::weightspace.WeightspaceWarning")
def test_folders_are_scored_on_a_task() -> None:
    save_model("Mixtral", "a")
    ws.save_checkpoint(shuffled(ws.load_checkpoint("a")), "b", companions_from="a")
    Path("tokens.py").write_text(TASK)
    command = "merge a b --align activation-then-weights --task tokens.py:task -o merged --json"
    result = CliRunner().invoke(cli.main, command.split())
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len({round(scores["loss"], 5) for scores in report["scores"].values()}) == 1
    assert report["barriers"]["b"]["loss"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_stacked_experts_are_those_of_transformers(name: str) -> None:
    network = save_model(name, "a").state_dict()
    state = ws.load_checkpoint("a")
    layout = expert_layout({key: tuple(tensor.shape) for key, tensor in network.items()}, state)
    stacked = layout.stacked(state)
    assert stacked.keys() == network.keys()
    assert all(torch.equal(stacked[key], tensor) for key, tensor in network.items())
    separate = layout.separate(stacked)
    assert separate.keys() == state.keys()
    assert all(torch.equal(separate[key], tensor) for key, tensor in state.items())


def test_experts_that_do_not_fit_the_network_are_refused() -> None:
    save_model("Mixtral", "a")
    state = ws.load_checkpoint("a")
    network = ws.load_network("transformers:a")
    spec = ws.derive_spec(network.module, network.example_args)
    lacking = {name: tensor for name, tensor in state.items() if ".experts.3.w2" not in name}
    with pytest.raises(ws.CheckpointError, match=r"do not fit together: 6 names"):
        ws.match(spec, state, lacking)
    further = {**state, "model.layers.0.block_sparse_moe.experts.4.w2.weight": torch.zeros(16, 12)}
    with pytest.raises(ws.CheckpointError, match=r"has 'model.layers.0.block_sparse_moe.experts.4.w2.weight'"):
        ws.permute(spec, ws.Permutation.identity(spec), further)
    mixed = {name: tensor.half() if ".experts.3.w2" in name else tensor for name, tensor in state.items()}
    with pytest.raises(ws.CheckpointError, match="have different dtypes; expected one"):
        ws.match(spec, state, mixed)
