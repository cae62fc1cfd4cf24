"""The networks that specs are derived for: real ones at full depth on small inputs, and one block for each idea.

``ZOO[name]()`` returns a network in eval mode and its example inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision.models as vision
from torch import Tensor, nn
from torch.nn.functional import glu, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parent))  # which --import-mode=importlib leaves off it

from zoo_experts import NORMED, ROUTED

Built = tuple[nn.Module, tuple[Any, ...]]
WORDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


class Attention(nn.Module):
    """Causal self-attention: ``fused`` is ``split`` (as in GPT), ``view`` (as in timm) or ``none``."""

    def __init__(self, width: int, heads: int, fused: str) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused == "none":
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        if self.fused == "view":
            view = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
            q, k, v = view.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            separate = (
                self.qkv(x).split(width, dim=-1)
                if self.fused == "split"
                else (self.query(x), self.key(x), self.value(x))
            )
            q, k, v = (one.view(batch, tokens, self.heads, -1).transpose(1, 2) for one in separate)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class GPT(nn.Module):
    """Embedding and head share one tensor."""

    def __init__(self, fused: str, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(17, width), nn.Embedding(8, width)
        self.attention = Residual(nn.LayerNorm(width), Attention(width, heads, fused))
        self.mlp = Residual(nn.LayerNorm(width), nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 17, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places(torch.arange(words.shape[1]))
        return self.head(self.norm(self.mlp(self.attention(x))))


class Llama(nn.Module):
    """Grouped queries, rotary positions, RMS norm and a gated MLP."""

    def __init__(self, width: int = 32, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.dim, self.heads, self.shared = width // heads, heads, shared
        self.words, self.norm1, self.norm2 = nn.Embedding(17, width), nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, shared * self.dim, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 40, bias=False), nn.Linear(width, 40, bias=False)
        self.down, self.head = nn.Linear(40, width, bias=False), nn.Linear(width, 17, bias=False)
        angles = torch.outer(torch.arange(8.0), 100.0 ** -torch.arange(0, 1, 2 / self.dim))
        self.register_buffer("angles", torch.cat([angles, angles], -1), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        angles = self.angles[: x.shape[-2]]
        left, right = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        batch, tokens, width = x.shape
        n = self.norm1(x)
        q = self.query(n).view(batch, tokens, self.heads, self.dim).transpose(1, 2)
        k, v = (f(n).view(batch, tokens, self.shared, self.dim).transpose(1, 2) for f in (self.key, self.value))
        k, v = (one.repeat_interleave(self.heads // self.shared, dim=1) for one in (self.turn(k), v))
        y = scaled_dot_product_attention(self.turn(q), k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        n = self.norm2(x)
        return self.head(x + self.down(nn.functional.silu(self.gate(n)) * self.up(n)))


class UNet(nn.Module):
    """Transposed convolutions, and skips that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.deep, self.up = nn.Conv2d(10, 10, 3, padding=1), nn.ConvTranspose2d(10, 8, 2, stride=2)
        self.mix, self.leave = nn.Conv2d(14, 7, 3, padding=1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x).relu()
        up = self.up(self.deep(self.down(skip).relu()).relu())
        return self.leave(self.mix(torch.cat([skip, up], 1).relu()).relu())


class Gated(nn.Module):
    """A gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 24), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(glu(self.enter(x)))


class PixelUnshuffled(nn.Module):
    """Blocks of positions become channels, which a shortcut and a norm share, and channels become positions again."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 20, 2, stride=2)
        self.norm, self.mix, self.leave = nn.BatchNorm2d(20), nn.Conv2d(20, 28, 1), nn.Conv2d(7, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        blocks = pixel_unshuffle(self.enter(x).relu(), 2)
        return self.leave(pixel_shuffle(self.mix(self.norm(blocks + self.down(x))).relu(), 2))


class PixelUnshuffledUnits(nn.Module):
    """The channels and both positions are hidden units: each index of ``c, (h i), (w j)`` is a group of its own."""

    def __init__(self, unshuffle: Callable[[Tensor, int], Tensor] = pixel_unshuffle, block: int = 3) -> None:
        super().__init__()
        self.unshuffle, self.block = unshuffle, block
        self.enter, self.leave = nn.Linear(4, 5 * 2 * block * 4 * block), nn.Linear(5 * block**2 * 2 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu().view(-1, 5, 2 * self.block, 4 * self.block)
        return self.leave(self.unshuffle(x, self.block).flatten(1))


class PaddedShortcut(nn.Module):
    """The shortcut of the first ResNets: missing channels are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.grow = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 11, 3, stride=2, padding=1)
        self.leave = nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
        return self.leave((short + self.grow(x)).relu().mean((2, 3)))


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` on its own, its input projected."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 24), nn.Linear(24, 3)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(self.attention(x, x, x, need_weights=False)[0])


class Tied(nn.Module):
    """An autoencoder that decodes by the transpose of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.hidden = nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(self.encode(x).tanh()).tanh() @ self.encode.weight


class Recurrent(nn.Module):
    """One matrix from a hidden layer to itself, several times: a group on both of its axes."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter, self.again, self.leave = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        for _ in range(3):
            x = self.again(x).relu()
        return self.leave(x)


class Reader(nn.Module):
    """A classifier of words: embedding, recurrent layers, a head on what ``state`` takes from their outputs."""

    def __init__(self, layers: nn.RNNBase, state: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.words, self.layers, self.state = nn.Embedding(17, layers.input_size), layers, state
        self.head = nn.Linear(width, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.state(*self.layers(self.words(words))))


class Translator(nn.Module):
    """The decoder starts from the encoder's last states, layer by layer; the encoder from one that it learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(5, 8, proj_size=6), nn.LSTM(5, 8, 1, proj_size=6)
        self.start, self.head = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(-1, x.shape[1], -1).contiguous()
        _, states = self.encoder(x, (start, x.new_zeros(1, x.shape[1], 8)))
        return self.head(self.decoder(x, states)[0])


class Steps(nn.Module):
    """A recurrence that is written out, step by step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def _last(outputs: Tensor, _: Any) -> Tensor:
    return outputs[:, -1]


def _last_of_both(_: Tensor, states: Any) -> Tensor:
    hidden = states[0] if isinstance(states, tuple) else states
    return torch.cat([hidden[-2], hidden[-1]], dim=1)


def _all_layers(_: Tensor, states: Tensor) -> Tensor:
    return states.transpose(0, 1).flatten(1)


def _reader(kind: type[nn.RNNBase], state: Callable[..., Tensor], width: int, **options: Any) -> Callable[[], Built]:
    return lambda: (Reader(kind(7, 10, batch_first=True, **options), state, width), (WORDS,))


def _mlp(widths: tuple[int, ...] = (6, 16, 12, 3)) -> Built:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), (torch.randn(4, widths[0]),)


def _group_norm() -> Built:
    network = nn.Sequential(
        *(
            nn.Conv2d(3, 12, 3),
            nn.GroupNorm(4, 12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 3, groups=2),
            nn.GroupNorm(2, 8),
        ),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    )
    return network, (torch.randn(2, 3, 9, 9),)


def _prelu() -> Built:
    network = nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.PReLU(6), nn.Flatten(), nn.Linear(30, 9), nn.PReLU(), nn.Linear(9, 2)
    )
    return network, (torch.randn(2, 2, 7),)


def _picture(build: Callable[..., nn.Module], size: int = 64, **options: Any) -> Callable[[], Built]:
    return lambda: (build(weights=None, **options), (torch.randn(1, 3, size, size),))


def _narrow_vgg() -> Built:
    network = vision.vgg16_bn(weights=None, num_classes=5)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    return network, (torch.randn(1, 3, 32, 32),)


def _narrow_vit() -> Built:
    sizes = {
        "image_size": 32,
        "patch_size": 16,
        "num_layers": 12,
        "num_heads": 4,
        "hidden_dim": 96,
        "mlp_dim": 160,
    }
    return vision.VisionTransformer(**sizes, num_classes=10), (torch.randn(1, 3, 32, 32),)


def _encoder_layer(**options: Any) -> Built:
    return nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, **options), (torch.randn(2, 5, 24),)


BUILDERS: dict[str, Callable[[], Built]] = {
    "mlp": _mlp,
    "resnet18": _picture(vision.resnet18),
    "resnet50": _picture(vision.resnet50),
    "vgg16_bn": _picture(vision.vgg16_bn, 32, num_classes=5),
    "densenet121": _picture(vision.densenet121, 32),
    "mobilenet_v2": _picture(vision.mobilenet_v2, 32),
    "convnext_tiny": _picture(vision.convnext_tiny),
    "vit_b_16": _picture(vision.vit_b_16, 32, image_size=32, num_classes=10),
    "vgg16_bn_narrow": _narrow_vgg,
    "vit_narrow": _narrow_vit,
    "gpt": lambda: (GPT("split"), (WORDS,)),
    "encoder_layer": _encoder_layer,
    "gpt_view": lambda: (GPT("view"), (WORDS,)),
    "gpt_unfused": lambda: (GPT("none"), (WORDS,)),
    "llama": lambda: (Llama(), (WORDS,)),
    "encoder_layer_norm_first": lambda: _encoder_layer(norm_first=True, activation="gelu"),
    "multihead_attention": lambda: (SelfAttention(), (torch.randn(2, 5, 5),)),
    "resnext50": _picture(vision.resnext50_32x4d),
    "regnet_y": _picture(vision.regnet_y_400mf),
    "shufflenet": _picture(vision.shufflenet_v2_x0_5),
    "swin_t": _picture(vision.swin_t),
    "unet": lambda: (UNet(), (torch.randn(2, 3, 8, 8),)),
    "gated": lambda: (Gated(), (torch.randn(4, 5),)),
    "group_norm": _group_norm,
    "prelu": _prelu,
    "padded_shortcut": lambda: (PaddedShortcut(), (torch.randn(2, 3, 8, 8),)),
    "pixel_unshuffle": lambda: (PixelUnshuffled(), (torch.randn(2, 3, 6, 10),)),
    "pixel_unshuffle_units": lambda: (PixelUnshuffledUnits(), (torch.randn(4, 4),)),
    "tied": lambda: (Tied(), (torch.randn(4, 8),)),
    "recurrent": lambda: (Recurrent(), (torch.randn(4, 5),)),
    "lstm": _reader(nn.LSTM, _last, 10, num_layers=2),
    "lstm_both_ways": _reader(nn.LSTM, _last_of_both, 12, num_layers=2, bidirectional=True, proj_size=6),
    "gru": _reader(nn.GRU, _last, 10, num_layers=2),
    "gru_both_ways": _reader(nn.GRU, _last_of_both, 20, num_layers=2, bidirectional=True),
    "gru_all_layers": _reader(nn.GRU, _all_layers, 30, num_layers=3),
    "rnn": _reader(nn.RNN, _last, 10, num_layers=2, nonlinearity="relu", bias=False),
    "translator": lambda: (Translator(), (torch.randn(4, 2, 5),)),
    "lstm_cell": lambda: (Steps(nn.LSTMCell(5, 8)), (torch.randn(2, 3, 5),)),
    "gru_cell": lambda: (Steps(nn.GRUCell(5, 8)), (torch.randn(2, 3, 5),)),
    "rnn_cell": lambda: (Steps(nn.RNNCell(5, 8)), (torch.randn(2, 3, 5),)),
    **ROUTED,
    **NORMED,
}


def build(name: str, seed: int = 0) -> Built:
    """Return a network of the zoo in eval mode and its example inputs; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, args = BUILDERS[name]()
    return network.eval(), args
