"""A small Llama, with the architecture and the tensor names of the Hub's.

Source:
    Touvron et al. 2023, https://arxiv.org/abs/2302.13971; grouped queries: Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245. Rotary embeddings turn dimensions ``i`` and ``i + d/2`` of a head as a pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

_EPSILON = 1e-6
_INITIAL_STD = 0.02
_ROTARY_BASE = 10_000.0


class Llama(nn.Module):
    """Logits of the next token: RMSNorm, rotary embeddings, grouped queries, SwiGLU, untied head, no biases.

    Args:
        vocabulary: number of tokens.
        length: maximum number of positions.
        width: features of the residual stream.
        depth: number of layers.
        heads: query heads of each layer, a divisor of ``width``.
        groups: key-value heads of each layer, a divisor of ``heads``.
        hidden: units of the MLP of each layer.
    """

    def __init__(
        self, *, vocabulary: int, length: int, width: int, depth: int, heads: int, groups: int, hidden: int
    ) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocabulary, width),
                "layers": nn.ModuleList(Layer(width, heads, groups, hidden) for _ in range(depth)),
                "norm": RMSNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        cos, sin = rotations(length, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=_INITIAL_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(n, length, vocabulary)`` of the tokens after each one of ``(n, length)``."""
        length = tokens.shape[1]
        cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        stream = self.model["embed_tokens"](tokens)
        for layer in self.model["layers"].children():
            stream = layer(stream, cos, sin)
        return self.lm_head(self.model["norm"](stream))


class Layer(nn.Module):
    """Attention and an MLP, each of which adds to the stream what it computes from the normalised stream."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width)
        self.self_attn = Attention(width, heads, groups)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, stream: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the stream ``(n, length, width)`` after the layer."""
        stream = stream + self.self_attn(self.input_layernorm(stream), cos, sin)
        return stream + self.mlp(self.post_attention_layernorm(stream))


class Attention(nn.Module):
    """Causal self-attention in which several query heads share a key-value head."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.size = width // heads
        self.shared_by = heads // groups
        self.q_proj = nn.Linear(width, heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, groups * self.size, bias=False)
        self.v_proj = nn.Linear(width, groups * self.size, bias=False)
        self.o_proj = nn.Linear(heads * self.size, width, bias=False)

    def forward(self, features: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the addition to the stream, ``(n, length, width)``, from the normalised stream."""
        query, key, value = (
            layer(features).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (part * cos + turned(part) * sin for part in (query, key))
        key, value = (part.repeat_interleave(self.shared_by, dim=1) for part in (key, value))
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """An MLP whose hidden units are multiplied by gates."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the addition to the stream, ``(n, length, width)``, from the normalised stream."""
        return self.down_proj(silu(self.gate_proj(features)) * self.up_proj(features))


class RMSNorm(nn.Module):
    """Division by the root mean square of the features, and multiplication by a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalised features, of the shape of ``features``."""
        return self.weight * (features * torch.rsqrt(features.square().mean(-1, keepdim=True) + _EPSILON))


def rotations(length: int, size: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angle of each position and dimension, ``(length, size)`` each."""
    frequencies = _ROTARY_BASE ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def turned(features: Tensor) -> Tensor:
    """Return each pair of dimensions ``(x, y)``, half a head apart, as ``(−y, x)``."""
    half = features.shape[-1] // 2
    return torch.cat((-features[..., half:], features[..., :half]), dim=-1)
