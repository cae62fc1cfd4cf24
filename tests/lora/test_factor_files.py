"""Files of adapters are no models: they are refused wherever models are averaged, and nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.connectivity import loss_curve, loss_plane
from weightspace.errors import CheckpointError
from weightspace.lora.factor_files import check_is_model, is_factor
from weightspace.matching import merge_many
from weightspace.merging import ExecutionOptions, merge_files
from weightspace.soups import learned_soup, uniform_soup, wise_ft

#: Names as the tools write them; each is a whole file.
ADAPTERS: dict[str, list[str]] = {
    "peft": ["base_model.model.l.q.lora_A.weight", "base_model.model.l.q.lora_B.weight"],
    "peft, named": ["base_model.model.l.q.lora_A.default.weight", "base_model.model.l.q.lora_B.default.weight"],
    "peft, an embedding": ["base_model.model.wte.lora_embedding_A", "base_model.model.wte.lora_embedding_B"],
    "peft, with a head trained whole": [
        *("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", "base_model.model.score.weight"),
    ],
    "peft, dora": ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_magnitude_vector"],
    "peft, vera": ["base_model.model.q.vera_lambda_b", "base_model.model.q.vera_lambda_d"],
    "peft, ia3": ["base_model.model.q.ia3_l"],
    "peft, waveft": ["base_model.model.q.waveft_spectrum"],
    "kohya": ["lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight", "lora_unet_q.alpha"],
    "kohya, tucker": ["lora_unet_c.lora_down.weight", "lora_unet_c.lora_mid.weight", "lora_unet_c.lora_up.weight"],
    "lycoris, dora": ["lycoris_q.lora_down.weight", "lycoris_q.lora_up.weight", "lycoris_q.dora_scale"],
    "lycoris, loha": ["lora_te_q.hada_w1_a", "lora_te_q.hada_w1_b", "lora_te_q.hada_w2_a", "lora_te_q.hada_w2_b"],
    "lycoris, lokr": ["lycoris_q.lokr_w1", "lycoris_q.lokr_w2_a", "lycoris_q.lokr_w2_b", "lycoris_q.alpha"],
    "lycoris, oft": ["lycoris_q.oft_blocks", "lycoris_q.alpha"],
    "lycoris, whole differences": [
        "lora_unet_q.diff",
        "lora_unet_q.diff_b",
        "lora_unet_n.w_norm",
        "lora_unet_n.b_norm",
    ],
    "lycoris, glora": [f"lycoris_q.{half}.weight" for half in ("a1", "a2", "b1", "b2")],
    "lycoris, glora, with what multiplies": ["lycoris_q.a1.weight", "lycoris_q.b1.weight", "lycoris_q.bm.weight"],
    "lycoris, (ia)3": ["lycoris_q.weight", "lycoris_q.on_input"],
    "kohya, of what is not known": ["lora_unet_q.novel_w1", "lora_te2_q.novel_w1", "lora_te2_q.alpha"],
    "comfyui, factors and differences": [
        *("diffusion_model.blocks.0.q.lora_down.weight", "diffusion_model.blocks.0.q.lora_up.weight"),
        *("diffusion_model.blocks.0.q.diff_b", "diffusion_model.blocks.0.norm.diff"),
    ],
    "onetrainer": ["transformer.q.lora_down.weight", "transformer.q.lora_up.weight", "bundle_emb.cat.clip_l"],
    "without a separator": ["layers.0.q.loraA.weight", "layers.0.q.loraB.weight"],
    "numbered": ["layers.0.q.lora_A1", "layers.0.q.lora_B1"],
    "parameters": ["layers.0.q.lora_A_weight", "layers.0.q.lora_B_weight"],
    "a module of two": ["layers.0.q.lora.A", "layers.0.q.lora.B"],
    "comfyui, differences": ["diffusion_model.blocks.0.q.diff", "diffusion_model.blocks.0.q.diff_b"],
    "diffusers": ["unet.attn1.processor.to_q_lora.down.weight", "unet.attn1.processor.to_q_lora.up.weight"],
    "diffusers, text": ["text_encoder.q.lora_linear_layer.down.weight", "text_encoder.q.lora_linear_layer.up.weight"],
    "diffusers, layers": ["transformer.blocks.0.q.lora.down.weight", "transformer.blocks.0.q.lora.up.weight"],
    "xlabs": ["double_blocks.0.processor.qkv_lora1.down.weight", "double_blocks.0.processor.qkv_lora1.up.weight"],
    "cloneofsimo": ["unet:0:up", "unet:0:down"],
    "torchtune, mlx": ["layers.0.attn.q_proj.lora_a", "layers.0.attn.q_proj.lora_b"],
    "nemo": [
        "decoder.layers.0.lora_kqv_adapter.linear_in.weight",
        "decoder.layers.0.lora_kqv_adapter.linear_out.weight",
    ],
    "nemo 2": [
        "decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight",
        "decoder.layers.0.self_attention.linear_qkv.adapter.linear_out.weight",
    ],
}

#: Whole models with an adapter in them that was never merged.
UNMERGED: dict[str, list[str]] = {
    "peft": ["base_model.model.n.weight", "base_model.model.q.base_layer.weight", *ADAPTERS["peft"]],
    "phi 4": [
        "model.layers.0.self_attn.qkv_proj.base_layer.weight",
        "model.layers.0.self_attn.qkv_proj.lora_A.speech.weight",
        "model.layers.0.self_attn.qkv_proj.lora_B.speech.weight",
        "model.norm.weight",
    ],
    "a network of its own": ["body.weight", "body.bias", "body.lora_A", "body.lora_B", "head.weight"],
    "comfyui, control": ["lora_controlnet", "input_blocks.0.0.bias", "input_blocks.0.0.down", "input_blocks.0.0.up"],
    "nemo 2": ["linear_fc1.to_wrap.weight", "linear_fc1.adapter.linear_in.weight", "norm.weight"],
    "torchtune": ["norm.scale", "layers.0.q.weight", "layers.0.q.lora_a.weight", "layers.0.q.lora_b.weight"],
}

#: Models whose names look a little like those of adapters.
MODELS: dict[str, list[str]] = {
    "a module called flora": ["flora.down.weight", "flora.up.weight", "flora_A.weight", "explorer.lora.weight"],
    "rwkv, by hand": ["att.w_lora_A", "att.w_lora_B", "att.time_decay"],
    "latent attention": ["attn.kv_lora_proj.weight", "attn.q_lora_norm.weight", "attn.lora_bias", "attn.lora_alpha"],
    "rwkv 7": ["attn.w_lora.lora.0.weight", "attn.w_lora.lora.2.weight", "attn.w_lora.lora.2.bias"],
    "deepseek": ["self_attn.q_a_proj.weight", "self_attn.q_b_proj.weight", "self_attn.kv_a_proj_with_mqa.weight"],
    "a vocoder": ["ups.0.weight", "ups.0.alpha", "resblocks.0.acts.0.alpha", "resblocks.0.acts.0.beta"],
    "differences": ["block.diff", "block.weight", "block.alpha"],
    "two by two": ["a1.weight", "a2.weight", "b1.weight", "b2.weight"],
    "a u-net": ["down.0.weight", "up.0.weight", "mid.weight", "input_blocks.0.0.up", "input_blocks.0.0.down"],
    "adapters as bottlenecks": ["layers.0.adapter.linear_in.weight", "layers.0.adapter.linear_out.weight"],
    "merged by peft": ["base_model.model.model.layers.0.q_proj.weight", "base_model.model.lm_head.weight"],
}


def state_of(names: list[str]) -> StateDict:
    return {name: torch.ones(2, 2) for name in names}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_adapters_are_refused_while_planning(kind: str, ending: str, tmp_path: Path) -> None:
    for name in "ab":
        ws.save_checkpoint(state_of(ADAPTERS[kind]), tmp_path / f"{name}.{ending}")
    for dry_run in (True, False):
        with pytest.raises(CheckpointError, match="merge-adapters") as error:
            merge_files([tmp_path / f"{name}.{ending}" for name in "ab"], tmp_path / "out.safetensors", dry_run=dry_run)
        assert f"a.{ending}" in str(error.value)
        assert len(str(error.value)) < 500
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{ending}", f"b.{ending}"]


@pytest.mark.parametrize("kind", UNMERGED)
def test_a_model_with_an_adapter_that_was_never_merged_is_refused(kind: str, tmp_path: Path) -> None:
    ws.save_checkpoint(state_of(UNMERGED[kind]), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"an unmerged adapter .*merge_and_unload"):
        merge_files([tmp_path / "a.safetensors"] * 2, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="an unmerged adapter"):
        ws.merge([state_of(UNMERGED[kind])] * 2)


@pytest.mark.parametrize("kind", MODELS)
def test_models_are_not_refused_for_their_names(kind: str, tmp_path: Path) -> None:
    state = state_of(MODELS[kind])
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    merge_files([tmp_path / "a.safetensors"] * 2, tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
    assert ws.load_checkpoint(tmp_path / "out.safetensors").keys() == state.keys()
    assert ws.merge([state, state]).keys() == state.keys()


def test_names_of_any_length_make_a_short_error() -> None:
    with pytest.raises(CheckpointError) as error:
        check_is_model(["x" * 100_000 + ".lora_A.weight"], "y" * 100_000)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_linear", "knots"])
def test_every_method_refuses_adapters(method: str) -> None:
    states = [state_of(ADAPTERS["kohya"]) for _ in range(2)]
    base = None if method in ("linear", "slerp") else states[0]
    with pytest.raises(CheckpointError, match="is an adapter, not a model"):
        ws.merge(states, method, base=base)


class LowRank(torch.nn.Module):
    """A layer with a LoRA of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.lora_A, self.lora_B = torch.nn.Parameter(torch.ones(1, 2)), torch.nn.Parameter(torch.ones(2, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) + inputs @ self.lora_A.T @ self.lora_B.T


def task() -> Any:
    from weightspace.tasks import ClassificationTask, Examples

    examples = Examples(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    return ClassificationTask("lora", LowRank, lambda: dict.fromkeys(("train", "validation", "test"), examples))


#: What averages networks, or walks between them.
AVERAGES: dict[str, Callable[[StateDict], object]] = {
    "interpolate": lambda state: ws.interpolate(state, state, 0.5),
    "loss_curve": lambda state: loss_curve(task(), state, state),
    "loss_plane": lambda state: loss_plane(task(), state, state, state),
    "taylor_barrier": lambda state: ws.taylor_barrier(task(), state, state),
    "uniform_soup": lambda state: uniform_soup([state, state]),
    "learned_soup": lambda state: learned_soup([state, state], task()),
    "wise_ft": lambda state: wise_ft(state, state, task(), cache=False),
    "merge_many": lambda state: merge_many(ws.PermutationSpec({}, {}), [state, state]),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_every_function_that_averages_networks_refuses_factors(name: str) -> None:
    state = {key: tensor.detach().clone() for key, tensor in LowRank().state_dict().items()}
    with pytest.raises(CheckpointError, match="mean of factors"):
        AVERAGES[name](state)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin", None])
def test_the_folder_of_an_adapter_is_no_model(weights: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    if weights is not None:
        ws.save_checkpoint(state_of(ADAPTERS["peft"]), tmp_path / "x.safetensors")
        (tmp_path / "x.safetensors").rename(folder / weights)
    with pytest.raises(CheckpointError, match=r"an adapter folder .*MODEL\+ADAPTER"):
        merge_files([folder, folder], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"It is an adapter: .*MODEL\+ADAPTER"):
        ws.load_checkpoint(folder)
    assert not (tmp_path / "out").exists()


def test_a_model_folder_that_also_holds_an_adapter_is_a_model(tmp_path: Path) -> None:
    state = {"q.weight": torch.randn(3, 3)}
    for name in "ab":
        ws.save_checkpoint(state, tmp_path / name)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
        ws.save_checkpoint(state_of(ADAPTERS["peft"]), tmp_path / name / "adapter_model.safetensors")
    merge_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
    assert torch.equal(ws.load_checkpoint(tmp_path / "out.safetensors")["q.weight"], state["q.weight"])


def test_the_model_of_model_plus_adapter_is_checked_as_well(tmp_path: Path, write: Callable[..., Path]) -> None:
    ws.save_checkpoint(state_of(UNMERGED["phi 4"]), tmp_path / "m.safetensors")
    adapter = write("x", {"q.lora_A.weight": torch.ones(2, 2), "q.lora_B.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="an unmerged adapter"):
        merge_files([f"{tmp_path}/m.safetensors+{adapter}"], tmp_path / "out.safetensors")


def test_factors_are_known_by_whole_parts_of_names() -> None:
    assert is_factor("a.lora_A.weight")
    assert not any(map(is_factor, ("a.flora_A.weight", "a.lora_Alpha.weight", "a.xlora_B.weight", "a.lora.weight")))
