"""Networks from each library, built without a download; each can be traced and verified."""

import json
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.networks import load_network, parse_inputs

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
        ("transformers:nowhere", "nowhere does not exist here"),
    ],
)
def test_a_wrong_source_says_what_is_wrong(source: str, message: str) -> None:
    with pytest.raises(ws.WeightspaceError, match=message) as caught:
        load_network(source)
    assert "\n" not in str(caught.value)


BUILDER = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(20, width), nn.Linear(width, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        return self.head(self.inner(self.embed(input_ids) * attention_mask[..., None]).relu())

def build(width=8):
    return Tagger(width)

def with_inputs(width=8):
    ids = torch.ones(1, 5, dtype=torch.int64)
    return Tagger(width), {"input_ids": ids, "attention_mask": ids}

module = Tagger(8)
"""


@pytest.fixture
def builder(tmp_path: Path) -> str:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "model.py").write_text(BUILDER)
    return f"{tmp_path}/a,b/model.py"


NAMED = ("input_ids=2,5:int64:20", "attention_mask=2,5:int64")


@pytest.mark.parametrize("width", [8, 12])
def test_builders_of_a_file_take_options_and_inputs_by_name(builder: str, width: int) -> None:
    network = load_network(f"{builder}:build,width={width}", inputs=NAMED)
    assert network.module.embed.embedding_dim == width
    spec = ws.derive_spec(network.module, network.example_args)
    assert spec.groups == {"embed": width, "inner": 6}
    own = load_network(f"{builder}:with_inputs,width={width}")
    assert ws.derive_spec(own.module, own.example_args).axes == spec.axes


def test_inputs_are_drawn_as_they_are_described() -> None:
    ids, mask, pixels, flags = parse_inputs(["2,50:int64:20", "3:int64", "1,3,8,8", "4:bool"])
    assert (ids.dtype, ids.shape, int(ids.min()), int(ids.max())) == (torch.int64, (2, 50), 1, 19)
    assert mask.tolist() == [1, 1, 1]
    assert (pixels.dtype, pixels.shape) == (torch.float32, (1, 3, 8, 8))
    assert flags.dtype == torch.bool
    assert parse_inputs(["x=1:float64"])["x"].dtype == torch.float64


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["x"], "An input is"),
        (["1,2:int"], "An input is"),
        (["1,2:int64:1"], "An input is"),
        (["1,2:int64:x"], "An input is"),
        (["=1,2"], "An input is"),
        (["1,0"], "An input is"),
        (["x=1", "2"], "have distinct names"),
        (["x=1", "x=2"], "have distinct names"),
    ],
)
def test_descriptions_of_nothing_are_a_line(inputs: list[str], message: str) -> None:
    with pytest.raises(ws.WeightspaceError, match=message):
        parse_inputs(inputs)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("build,width", r"name=value, for example num_classes=10; found 'width'"),
        ("build,depth=3", r"raised TypeError: .*depth"),
        ("module,width=3", "is a module, which takes no options; found width"),
        ("build", "returned a module without inputs; give them"),
    ],
)
def test_mistakes_in_a_source_are_a_line(builder: str, source: str, message: str) -> None:
    with pytest.raises(ws.WeightspaceError, match=message):
        load_network(f"{builder}:{source}")
