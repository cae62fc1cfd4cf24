"""Tasks of a second: three clouds of points, and a network of each kind."""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from weightspace.checkpoints import StateDict
from weightspace.symmetry import derive_spec
from weightspace.tasks import ClassificationTask, Examples, Split, TrainConfig, train


class Attention(nn.Module):
    """A residual block of attention and one of an MLP, over four tokens."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.out = nn.Linear(3, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 12), nn.Linear(12, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1).unflatten(1, (4, 3)))
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.shrink(self.grow(x).relu())
        return self.head(self.norm(x).mean(1))


class ResNet(nn.Module):
    """A residual stream with BatchNorm, whose ReLUs are functions and not modules."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter, self.norm0 = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)
        self.conv1, self.norm1 = nn.Conv2d(width, 7, 1, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.norm2 = nn.Conv2d(7, width, 1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.enter(x)).relu()
        x = (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def mlp(width: int = 8) -> nn.Module:
    layers = (nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, 3))
    return nn.Sequential(nn.Flatten(), *layers)


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 2, bias=False)),
        *(nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)),
    )


BUILDERS = {"mlp": mlp, "cnn": cnn, "resnet": ResNet, "attention": Attention}


@lru_cache
def task(kind: str) -> ClassificationTask:
    return ClassificationTask(
        kind, BUILDERS[kind], clouds, batch_size=32, recipe=TrainConfig(epochs=20, learning_rate=1e-2)
    )


@lru_cache
def clouds() -> Mapping[Split, Examples]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 3, 2, 2, generator=generator)
    labels = torch.arange(192) % 3
    splits: list[Split] = ["train", "validation", "test"]
    inputs = partial(torch.randn, 192, 3, 2, 2, generator=generator)
    return {split: Examples(centres[labels] + 0.7 * inputs(), labels) for split in splits}


@lru_cache
def spec(kind: str, symmetry: str = "permutations") -> Any:
    return derive_spec(task(kind).network(), task(kind).example_args, symmetry=symmetry)  # type: ignore[call-overload]


@lru_cache
def trained(kind: str, seed: int) -> StateDict:
    return train(task(kind), seed)


def network(kind: str, state: StateDict) -> nn.Module:
    built = BUILDERS[kind]()
    built.load_state_dict(state)
    return built.eval()
