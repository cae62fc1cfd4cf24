"""Larger symmetries than permutations, on networks of torch, transformers, timm and open_clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.matching.aligning import align
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.kinds.canonicalise import canonicalise
from weightspace.symmetry.kinds.derive import trace_symmetries
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.fold import fold
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.kinds.verified import verify_symmetries
from weightspace.symmetry.random_weights import randomise

Case = tuple[nn.Module, Any]

TOKENS = torch.arange(12)[None]


def llama(**further: Any) -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **further,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": TOKENS, "use_cache": False}


def gpt2(*, tied: bool) -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval(), {"input_ids": TOKENS, "use_cache": False}


def bert() -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return transformers.BertForSequenceClassification(config).eval(), {"input_ids": TOKENS}


def vit() -> Case:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10)
    return network.eval(), torch.randn(1, 3, 32, 32)


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(32, 4, 48, norm_first=True, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(32), enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 32), stack, nn.Linear(32, 3)).eval(), torch.randn(2, 6, 5)


class TextTower(nn.Module):
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        return self.clip.encode_text(tokens)


def clip(*, image: bool) -> Case:
    model = pytest.importorskip("open_clip").model
    vision = model.CLIPVisionCfg(image_size=32, patch_size=16, width=32, layers=2, head_width=8)
    text = model.CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=4, layers=2)
    network = model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    return (network.visual, torch.randn(1, 3, 32, 32)) if image else (TextTower(network), torch.arange(8)[None])


def derived(case: Case) -> SymmetrySpec:
    network, inputs = case
    return trace_symmetries(network, Inputs.of(inputs))


#: Name -> network, and the kind of its stream.
CASES: dict[str, tuple[Callable[[], Case], str]] = {
    "timm": (vit, "orthogonal"),
    "torch": (encoder, "orthogonal"),
    "llama": (llama, "orthogonal"),
    "llama-eager": (lambda: llama(attn_implementation="eager", attention_bias=True), "orthogonal"),
    "gpt2": (lambda: gpt2(tied=False), "orthogonal"),
    "clip-text": (lambda: clip(image=False), "orthogonal"),
    "gpt2-tied": (lambda: gpt2(tied=True), "permutation"),
    "clip-image": (lambda: clip(image=True), "permutation"),
    "bert": (bert, "permutation"),
}


@pytest.mark.parametrize(("make", "stream"), CASES.values(), ids=CASES)
def test_fold_and_random_element_leave_the_function_as_it_is(make: Callable[[], Case], stream: str) -> None:
    torch.manual_seed(0)
    network, inputs = make()
    spec = derived((network, inputs))
    by_fold, by_element = verify_symmetries(spec, network, inputs)
    assert by_fold < 1e-10
    assert by_element < 1e-10
    width = max(spec.groups[group] for group in spec.groups if spec.kinds[group] in ("orthogonal", "phases"))
    assert spec.kinds[next(iter(spec.groups))] == stream
    assert (width > 8) == (stream == "orthogonal")  # heads may be turned in any case


@pytest.mark.parametrize("name", CASES)
def test_a_planted_element_is_recovered_from_weights(name: str) -> None:
    torch.manual_seed(0)
    network, inputs = CASES[name][0]()
    randomise(network, 1)
    spec = derived((network, inputs))
    target = canonicalise(spec, {key: tensor.detach() for key, tensor in network.state_dict().items()})
    found = align(spec, target, Element.random(spec, seed=3).apply(target))
    limit = 1e-5 if name == "torch" else 1e-6  # its first layer has 5 inputs for a stream of 32
    assert found.l2_reduction > 1 - limit


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: gpt2(tied=True),
            "transformer.wte: only permuted, because lm_head.weight, which reads the output of transformer.ln_f, is "
            "tied: it is used elsewhere as well",
        ),
        (
            bert,
            "bert.embeddings.word_embeddings: only permuted, because the output of bert.embeddings.LayerNorm enters "
            "the residual stream, and is read by more than linear layers",
        ),
        (
            lambda: clip(image=True),
            "class_embedding: only permuted, because the output of ln_pre enters the residual stream, and is read by "
            "more than linear layers",
        ),
    ],
    ids=["gpt2-tied", "bert", "clip-image"],
)
def test_a_stream_that_falls_back_has_its_reason(make: Callable[[], Case], sentence: str) -> None:
    spec = derived(make())
    assert sentence in spec.frozen
    told = {note.partition(": ")[0] for note in spec.frozen}
    assert told == {group for group, kind in spec.kinds.items() if kind in ("permutation", "signed")}


def test_rotary_dimensions_have_phases_and_values_rotations() -> None:
    spec = derived(llama())
    heads = "model.layers.0.self_attn.q_proj"
    assert spec.kinds[f"{heads}/3"] == "phases"
    assert spec.kinds["model.layers.0.self_attn.v_proj"] == "orthogonal"
    assert spec.outer[f"{heads}/3"] == heads
    assert not spec.fixes_ones


def test_layer_norm_fixes_ones_and_folds_what_it_can() -> None:
    spec = derived(gpt2(tied=False))
    assert spec.fixes_ones == {"transformer.wte"}
    kept = [one.shift for one in spec.folds if one.keeps_shift]
    assert kept == ["transformer.ln_f.bias"]  # the head has no bias that could take it


def test_a_wrong_kind_changes_the_function() -> None:
    network, inputs = vit()
    spec = derived((network, inputs))
    hidden = next(group for group in spec.groups if group.endswith("mlp.fc1"))
    wrong = SymmetrySpec(
        groups=spec.groups, kinds={**spec.kinds, hidden: "orthogonal"}, axes=spec.axes, outer=spec.outer,
        fixes_ones=spec.fixes_ones, folds=spec.folds,
    )  # fmt: skip
    assert verify_symmetries(wrong, network, inputs)[1] > 1e-3


def test_without_fixed_ones_a_centred_stream_changes() -> None:
    network, inputs = vit()
    spec = derived((network, inputs))
    wrong = SymmetrySpec(spec.groups, spec.kinds, spec.axes, spec.outer, folds=spec.folds)
    assert verify_symmetries(wrong, network, inputs)[1] > 1e-3


def test_elements_are_orthogonal_and_keep_the_vector_of_ones() -> None:
    spec = derived(vit())
    element = Element.random(spec, seed=0)
    for group, kind in spec.kinds.items():
        if kind != "permutation":
            matrix = element.matrix(group)
            eye = torch.eye(spec.groups[group], dtype=torch.float64)
            assert torch.allclose(matrix @ matrix.mT, eye.expand_as(matrix), atol=1e-12)
            if group in spec.fixes_ones:
                assert torch.allclose(matrix.sum(-1), torch.ones(len(eye), dtype=torch.float64), atol=1e-12)


class Mixture(nn.Module):
    """Linear in all but one operator between two linear layers."""

    def __init__(self, between: Callable[[Tensor], Tensor], *, inner: int = 8) -> None:
        super().__init__()
        self.write, self.read = nn.Linear(4, 8), nn.Linear(inner, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.between(self.write(x)))


@pytest.mark.parametrize(
    ("between", "kind"),
    [
        (lambda x: x, "orthogonal"),
        (lambda x: x * 3 - x / 2, "orthogonal"),
        (lambda x: x + x.flip(0), "orthogonal"),
        (lambda x: -x + 0.0, "orthogonal"),
        (lambda x: x / x.square().sum((0, 1), keepdim=True), "signed"),
        (lambda x: x.relu(), "permutation"),
        (lambda x: x + 1, "permutation"),
        (lambda x: x + x.mean(-1, keepdim=True), "permutation"),
        (lambda x: x * x, "signed"),
        (lambda x: x.softmax(-1), "permutation"),
        (lambda x: x + torch.ones(8), "permutation"),
        (lambda x: x + torch.zeros(8), "orthogonal"),
        (lambda x: torch.einsum("bd,bd->bd", x, x), "permutation"),
        (lambda x: torch.einsum("bd,cd,ce->be", x, x, x), "orthogonal"),
    ],
)
def test_only_linear_operators_leave_mixtures_free(between: Callable[[Tensor], Tensor], kind: str) -> None:
    network, x = Mixture(between).eval(), torch.randn(5, 4)
    spec = derived((network, x))
    assert list(spec.kinds.values()) == [kind]
    assert verify_symmetries(spec, network, x)[1] < 1e-10


class Similarities(nn.Module):
    """Two linear layers whose results are compared, as the towers of CLIP are."""

    def __init__(self, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(5, 8), nn.Linear(4, 8)
        self.normalise = normalise

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.normalise(self.image(x)) @ self.normalise(self.text(y)).T


@pytest.mark.parametrize(
    ("normalise", "kind"),
    [
        (lambda x: nn.functional.normalize(x, dim=-1), "orthogonal"),
        (lambda x: x / x.norm(dim=-1, keepdim=True), "orthogonal"),
        (lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True), "orthogonal"),
        (lambda x: x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-6), "orthogonal"),
        (lambda x: nn.functional.normalize(x, p=1, dim=-1), "signed"),
        (lambda x: nn.functional.normalize(x, dim=0), "signed"),
        (lambda x: x / x.norm(), "signed"),
        (lambda x: x * x.norm(dim=-1, keepdim=True), "signed"),
        (lambda x: x / x.norm(dim=-1, keepdim=True) + x.norm(dim=-1, keepdim=True), "permutation"),
        (lambda x: x / (x.norm(dim=-1, keepdim=True) + torch.arange(1.0, 9.0)), None),
        (lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(torch.arange(1.0, 9.0)), None),
    ],
)
def test_a_joint_space_whose_rows_are_divided_by_their_lengths_may_be_mixed(
    normalise: Callable[[Tensor], Tensor], kind: str | None
) -> None:
    network, inputs = Similarities(normalise).eval(), (torch.randn(3, 5), torch.randn(2, 4))
    spec = derived((network, inputs))
    assert list(spec.kinds.values()) == ([kind] if kind else [])
    assert verify_symmetries(spec, network, inputs)[1] < 1e-10


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.write, self.read = nn.Linear(4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.write(x).expand(-1, 8))


def test_copies_are_permuted_but_not_mixed() -> None:
    network, x = Repeated().eval(), torch.randn(5, 4)
    spec = derived((network, x))
    assert set(spec.kinds.values()) == {"permutation"}
    assert verify_symmetries(spec, network, x)[1] < 1e-10


class Experts(nn.Module):
    """Batched products: experts may be exchanged, but not mixed; their outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 6)), nn.Parameter(torch.randn(3, 6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.matmul(torch.matmul(x, self.up), self.down)).sum(0)


def test_batches_of_products_are_exchanged_and_not_mixed() -> None:
    network, x = Experts().eval(), torch.randn(5, 4)
    spec = derived((network, x))
    by_size = {spec.groups[group]: kind for group, kind in spec.kinds.items()}
    assert by_size == {3: "permutation", 6: "orthogonal"}
    assert verify_symmetries(spec, network, x)[1] < 1e-10


def test_a_gain_of_zero_under_a_kept_shift_is_refused() -> None:
    network, _ = gpt2(tied=False)
    spec = derived((network, {"input_ids": TOKENS, "use_cache": False}))
    with torch.no_grad():
        network.transformer.ln_f.weight[3] = 0
        network.transformer.ln_f.bias[3] = 1
    with pytest.raises(SpecError, match="gains other than 0"):
        fold(spec, network.state_dict())
