"""Permutations of attention written out: heads, and inside each head those that positions and shared keys leave.

Queries and keys without rotary positions share one permutation per head, values and the output projection another.
Rotary positions turn pairs of dimensions at frequencies of their own, so that queries and keys keep their order; heads
that share keys and values move with them, and among themselves.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from weightspace.matching import weight_matching
from weightspace.symmetry import Permutation, PermutationSpec, derive_spec, permute
from weightspace.symmetry.pattern import format_axes, parse_axes

WORDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
Built = tuple[nn.Module, tuple[torch.Tensor, ...]]


def _vit() -> Built:
    timm = pytest.importorskip("timm")
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=4, num_classes=5
    )
    return network, (torch.randn(2, 3, 16, 16),)


def _torchvision_vit() -> Built:
    vision = pytest.importorskip("torchvision").models
    network = vision.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=24, mlp_dim=40, num_classes=5
    )
    nn.init.normal_(network.heads.head.weight)  # zeros otherwise, which no matching tells apart
    return network, (torch.randn(2, 3, 16, 16),)


def _gpt2(attention: str) -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        **{"vocab_size": 19, "n_positions": 8, "n_embd": 24, "n_layer": 2, "n_head": 4},
        **{"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": attention},
    )
    return transformers.GPT2LMHeadModel(config), (WORDS,)


def _llama(attention: str, shared: int) -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **{"vocab_size": 19, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": shared, "attn_implementation": attention},
    )
    return transformers.LlamaForCausalLM(config), (WORDS,)


NETWORKS: dict[str, Callable[[], Built]] = {
    "timm": _vit,
    "torchvision": _torchvision_vit,
    "gpt2": lambda: _gpt2("sdpa"),
    "gpt2_eager": lambda: _gpt2("eager"),
    "llama": lambda: _llama("sdpa", shared=2),
    "llama_eager": lambda: _llama("eager", shared=2),
    "llama_own_keys": lambda: _llama("sdpa", shared=4),
    "llama_one_key": lambda: _llama("sdpa", shared=1),
}


def _build(name: str) -> Built:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, args = NETWORKS[name]()
    return network.eval(), args


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_preserved_and_a_planted_permutation_recovered(name: str) -> None:
    network, args = _build(name)
    spec = derive_spec(network, args)
    assert spec.verification is not None
    assert spec.verification.error < 1e-5
    assert spec.frozen == ()
    state = {key: tensor.detach() for key, tensor in network.state_dict().items()}
    for seed in range(3):
        planted = Permutation.random(spec, seed=seed)
        assert weight_matching(spec, state, permute(spec, planted, state), seed=seed).permutation == planted.inverse()


def _of(name: str) -> tuple[PermutationSpec, dict[str, str]]:
    spec = derive_spec(*_build(name), verify=False)
    return spec, {tensor: format_axes(axes) for tensor, axes in spec.axes.items()}


def _named(texts: dict[str, str], groups: dict[str, str]) -> dict[str, str]:
    """Return the axes with short names for the groups."""
    for short, group in sorted(groups.items(), key=lambda pair: -len(pair[1])):
        texts = {tensor: text.replace(group, short) for tensor, text in texts.items()}
    return texts


@pytest.mark.parametrize(
    ("name", "stream", "block", "fused", "out"),
    [
        ("timm", "cls_token", "blocks.1", "attn.qkv", "attn.proj"),
        ("torchvision", "class_token", "encoder.layers.encoder_layer_1", "self_attention", "self_attention.out_proj"),
        ("gpt2", "transformer.wte", "transformer.h.1", "attn.c_attn", "attn.c_proj"),
        ("gpt2_eager", "transformer.wte", "transformer.h.1", "attn.c_attn", "attn.c_proj"),
    ],
)
def test_fused_attention_has_free_heads_each_with_free_queries_and_free_values(
    name: str, stream: str, block: str, fused: str, out: str
) -> None:
    spec, texts = _of(name)
    home = f"{block}.{fused}"
    groups = {group: size for group, size in spec.groups.items() if group.startswith(home)}
    nested = {inner: outer for inner, outer in spec.outer.items() if inner in groups}
    assert groups == {home: 4, f"{home}/2": 6, f"{home}/3": 6}
    assert nested == {f"{home}/2": home, f"{home}/3": home}
    weight = f"{home}.in_proj_weight" if name == "torchvision" else f"{home}.weight"
    short = _named(texts, {"stream": stream, "heads": home, "heads/2": f"{home}/2", "heads/3": f"{home}/3"})
    packed = "(heads [heads/2] + heads [heads/2] + heads [heads/3])"
    axes = [(packed, "stream"), ("stream", "(heads [heads/3])")]
    written = [" ".join(reversed(pair) if name.startswith("gpt2") else pair) for pair in axes]
    assert [short[weight], short[f"{block}.{out}.weight"]] == written
    assert len(spec.groups) == 1 + 2 * 4  # the stream; a block: heads, their queries, their values, the MLP
    assert spec.groups[stream] == 24


def test_rotary_positions_leave_heads_and_values_and_queries_of_shared_keys_move_among_themselves() -> None:
    for name in ("llama", "llama_eager"):
        spec, texts = _of(name)
        attention = "model.layers.1.self_attn"
        keys, queries, values = f"{attention}.q_proj", f"{attention}.q_proj/2", f"{attention}.v_proj"
        sizes = {group: size for group, size in spec.groups.items() if attention in group}
        nested = {inner: outer for inner, outer in spec.outer.items() if attention in inner}
        assert sizes == {keys: 2, queries: 2, values: 8}
        assert nested == {queries: keys, values: keys}
        short = _named(texts, {"stream": "model.embed_tokens", "keys": keys, "queries": queries, "values": values})
        assert short[f"{attention}.q_proj.weight"] == "(keys [queries] 8) stream"
        assert short[f"{attention}.k_proj.weight"] == "(keys 8) stream"
        assert short[f"{attention}.v_proj.weight"] == "(keys [values]) stream"
        assert short[f"{attention}.o_proj.weight"] == "stream (keys [queries] [values])"
        assert len(spec.groups) == 1 + 2 * 4


@pytest.mark.parametrize(
    ("name", "heads", "inner", "query", "value", "out"),
    [
        ("llama_own_keys", 4, 1, "(heads 8)", "(heads [values])", "(heads [values])"),
        ("llama_one_key", 4, 0, "(heads 8)", "values", "(heads values)"),
    ],
)
def test_keys_of_every_head_its_own_and_keys_shared_by_all_heads(
    name: str, heads: int, inner: int, query: str, value: str, out: str
) -> None:
    spec, texts = _of(name)
    attention = "model.layers.0.self_attn"
    assert spec.groups[f"{attention}.q_proj"] == heads
    assert spec.groups[f"{attention}.v_proj"] == 8
    assert len([one for one in spec.outer if attention in one]) == inner
    short = _named(
        texts, {"stream": "model.embed_tokens", "heads": f"{attention}.q_proj", "values": f"{attention}.v_proj"}
    )
    assert short[f"{attention}.q_proj.weight"] == f"{query} stream"
    assert short[f"{attention}.v_proj.weight"] == f"{value} stream"
    assert short[f"{attention}.o_proj.weight"] == f"stream {out}"


@pytest.mark.parametrize("swap", [[1, 0, 2, 3, 4, 5, 6, 7], [4, 1, 2, 3, 0, 5, 6, 7], [1, 0, 2, 3, 5, 4, 6, 7]])
def test_rotary_queries_and_keys_have_no_freedom_that_the_spec_misses(swap: list[int]) -> None:
    network, args = _build("llama")
    with torch.no_grad():
        before = network(*args).logits
        for block in network.model.layers:  # type: ignore[union-attr]
            for layer in (block.self_attn.q_proj, block.self_attn.k_proj):
                layer.weight.copy_(layer.weight.unflatten(0, (-1, 8))[:, swap].flatten(0, 1))
        after: Any = network(*args).logits
    assert float((after - before).norm() / before.norm()) > 1e-3


_SHARED = PermutationSpec(
    groups={"key": 3, "query": 2, "value": 2},
    outer={"query": "key", "value": "key"},
    axes={
        "q": parse_axes("(key [query] 4) 5"),
        "k": parse_axes("(key 4) 5"),
        "v": parse_axes("(key [value]) 5"),
        "out": parse_axes("5 (key [query] [value])"),
    },
)


def _random(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(_SHARED.shape(name), generator=generator) for name in _SHARED.axes}


def test_heads_that_share_keys_are_matched_nearly_as_well_as_possible() -> None:
    shares = []
    for seed in range(8):
        target, source = _random(seed), _random(100 + seed)
        best = max(_inner_product(target, permute(_SHARED, one, source)) for one in _every())
        shares.append(weight_matching(_SHARED, target, source).objective[-1] / best)
    assert max(shares) == pytest.approx(1, rel=1e-6)
    assert sum(shares) / len(shares) > 0.95


def _every() -> Iterator[Permutation]:
    """Yield every permutation of key heads, their queries and their values."""
    heads, pairs = ([torch.tensor(one) for one in itertools.permutations(range(size))] for size in (3, 2))
    for head, *inside in itertools.product(heads, *[pairs] * 6):
        indices = {"key": head, "query": torch.stack(inside[:3]), "value": torch.stack(inside[3:])}
        yield Permutation(_SHARED, indices)


def _inner_product(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)
