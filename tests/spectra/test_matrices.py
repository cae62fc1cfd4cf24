"""Choice of weight matrices by names and shapes, the same for every checkpoint of an architecture."""

import pytest
import torch
from torch import nn

from weightspace.errors import WeightspaceError
from weightspace.spectra import weight_matrices
from weightspace.symmetry import PermutationSpec
from weightspace.symmetry.pattern import parse_axes

COUNTED = {
    "fc.weight": (5, 3),
    "conv.weight": (5, 3, 2, 2),
    "embeddings.patch_embeddings.projection.weight": (5, 3, 2, 2),
    "patch_embed.weight": (5, 3, 2, 2),
    "text_projection": (5, 3),
    "embed_out.weight": (5, 3),
    "lstm.weight_ih_l0": (20, 3),
    "query_key_value.weight": (9, 3),
    "depthwise.weight": (5, 1, 3, 3),
}
LEFT_OUT = {
    "fc.bias": (5,),
    "scale": (),
    "model.embed_tokens.weight": (5, 3),
    "tok_emb.weight": (5, 3),
    "transformer.wte.weight": (5, 3),
    "transformer.wpe.weight": (5, 3),
    "embeddings.word_embeddings.weight": (5, 3),
    "token_embedding.weight": (5, 3),
    "positional_embedding": (5, 3),
    "pos_embed": (1, 5, 3),
    "cls_token": (1, 1, 3),
    "attn.relative_position_bias_table": (5, 3),
    "attn.rel_pos_h": (5, 3),
    "SelfAttention.relative_attention_bias.weight": (5, 3),
    "experts.gate_up_proj_bias": (4, 5),
    "shared.weight": (5, 3),
    "layer_scale": (5, 1, 1),
    "experts.gate_up_proj": (4, 5, 3),
    "empty.weight": (0, 3),
}


def test_linear_layers_and_convolutions_count_and_embeddings_do_not() -> None:
    state = {name: torch.randn(shape) for name, shape in (COUNTED | LEFT_OUT).items()}
    found = weight_matrices(state)
    assert list(found) == list(COUNTED)
    for name, one in found.items():
        assert torch.equal(one.matrix, state[name].flatten(1))
        assert one.tensor == one.name == name


def test_a_convolution_acts_on_patches_as_its_matrix_does() -> None:
    conv, image = nn.Conv2d(3, 5, 2, bias=False), torch.randn(1, 3, 4, 4)
    matrix = weight_matrices({"conv.weight": conv.weight})["conv.weight"].matrix
    expected = conv(image).flatten(2).detach()
    torch.testing.assert_close(matrix @ nn.functional.unfold(image, 2), expected)


def test_integers_complex_numbers_and_statistics_are_no_weights() -> None:
    state = {
        "fc.weight": torch.randn(4, 3),
        "index.weight": torch.ones(4, 3, dtype=torch.int64),
        "wave.weight": torch.ones(4, 3, dtype=torch.complex64),
        "whitening.running_covariance": torch.eye(3),
    }
    axes = {"fc.weight": parse_axes("4 3"), "whitening.running_covariance": parse_axes("3 3")}
    spec = PermutationSpec(groups={}, axes=axes, statistics=frozenset({"whitening.running_covariance"}))
    assert list(weight_matrices(state, spec=spec)) == ["fc.weight"]
    assert list(weight_matrices(state)) == ["fc.weight", "whitening.running_covariance"]


@pytest.mark.parametrize("name", ["attn.in_proj_weight", "blocks.0.attn.qkv.weight", "attn.Wqkv.weight"])
def test_fused_queries_keys_and_values_are_three_matrices(name: str) -> None:
    weight = torch.randn(12, 4)
    found = weight_matrices({name: weight})
    assert list(found) == [f"{name}[q]", f"{name}[k]", f"{name}[v]"]
    assert torch.equal(torch.cat([one.matrix for one in found.values()]), weight)
    assert {one.tensor for one in found.values()} == {name}


def test_the_parts_of_multihead_attention_are_what_it_multiplies_with() -> None:
    attention, tokens = nn.MultiheadAttention(4, 2, bias=False), torch.randn(6, 4)
    found = weight_matrices(dict(attention.named_parameters()))
    q, k, v = nn.functional.linear(tokens, attention.in_proj_weight).chunk(3, dim=1)
    for part, expected in zip("qkv", (q, k, v), strict=True):
        torch.testing.assert_close(tokens @ found[f"in_proj_weight[{part}]"].matrix.T, expected.detach())
    assert "out_proj.weight" in found


def test_gpt2_s_fused_weights_are_turned_and_those_of_a_linear_layer_are_not() -> None:
    weight = torch.randn(4, 12)
    for stored in (weight, weight.T):
        found = weight_matrices({"h.0.attn.c_attn.weight": stored})
        assert [one.name[-3:] for one in found.values()] == ["[q]", "[k]", "[v]"]
        assert torch.equal(torch.cat([one.matrix for one in found.values()]), weight.T)


def test_fused_weights_of_grouped_queries_are_taken_whole() -> None:
    assert list(weight_matrices({"attn.qkv_proj.weight": torch.randn(6, 4)})) == ["attn.qkv_proj.weight"]


def test_names_choose_even_embeddings_and_stacked_tensors() -> None:
    state = {name: torch.randn(shape) for name, shape in (COUNTED | LEFT_OUT).items()}
    chosen = ["transformer.*", "experts.gate_up_proj", "fc.*"]
    assert list(weight_matrices(state, names=chosen)) == [
        "fc.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "experts.gate_up_proj",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fc.wieght"], "Unknown weight matrix 'fc.wieght'.*Did you mean 'fc.weight'"),
        (["fc.bias"], r"'fc\.bias' is torch\.float32 of shape \(5,\) and isn't a weight matrix"),
        (["fc.weight", "layer4.*"], r"Unknown weight matrix 'layer4\.\*'"),
    ],
)
def test_names_that_choose_nothing_are_errors(names: list[str], message: str) -> None:
    state = {"fc.weight": torch.randn(5, 3), "fc.bias": torch.randn(5)}
    with pytest.raises(WeightspaceError, match=message):
        weight_matrices(state, names=names)


def test_a_network_without_weight_matrices_is_an_error() -> None:
    with pytest.raises(WeightspaceError, match="The network: no weight matrices among 1 tensors"):
        weight_matrices({"bias": torch.zeros(3)})
