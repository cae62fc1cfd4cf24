"""Networks from each library, built without a download; each can be traced and verified."""

import json
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.networks import load_network

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 2,
    "n_positions": 16,
    "vocab_size": 64,
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}


def derived(source: str, **options: tuple[int, ...]) -> ws.PermutationSpec:
    network = load_network(source, **options)
    return ws.derive_spec(network.module, network.example_args)


def test_torchvision_takes_options() -> None:
    network = load_network("torchvision:resnet18,num_classes=7", input_shape=(1, 3, 32, 32))
    assert network.module.fc.out_features == 7
    assert network.example_args[0].shape == (1, 3, 32, 32)
    assert len(ws.derive_spec(network.module, network.example_args).groups) == 12


def test_timm_knows_its_input() -> None:
    pytest.importorskip("timm")
    network = load_network("timm:test_resnet")
    assert network.example_args[0].ndim == 4
    assert ws.derive_spec(network.module, network.example_args).groups


def test_open_clip_from_a_config_file(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY_CLIP))
    spec = derived(f"open_clip:{path}")
    assert any(name.startswith("visual") for name in spec.groups)
    assert spec.outer, "heads have dimensions of their own"


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=lambda config: config["model_type"])
def test_transformers_from_a_folder_with_a_config(config: dict, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = derived(f"transformers:{tmp_path}")
    assert spec.groups
    assert not spec.frozen


def test_a_function_of_the_user_may_bring_its_inputs(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("import torch\ndef build():\n    return torch.nn.Linear(3, 2), torch.ones(1, 3)\n")
    network = load_network(f"{path}:build")
    assert torch.equal(network.example_args[0], torch.ones(1, 3))


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_network("torchvision:squeezenet1_1")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet18", "Unknown network source"),
        ("torchvision:resnet18,num_classes", "name=value"),
        ("torchvision:resnet18,clases=3", "cannot be built"),
        ("torchvision:resnet-18", "Did you mean 'resnet18'"),
        ("transformers:nowhere", "config.json"),
    ],
)
def test_a_wrong_source_says_what_is_wrong(source: str, message: str) -> None:
    with pytest.raises(ws.WeightspaceError, match=message) as caught:
        load_network(source)
    assert "\n" not in str(caught.value)
