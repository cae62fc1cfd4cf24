"""Mixtures of experts by the way their router is written, and networks whose weights are reparametrised.

Experts stand along the first axis of two tensors, or are modules of their own. ``ROUTED`` builds networks in which
router and experts are one group, ``TOLD_APART`` those in which an operator names each expert by its number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import parametrizations

Built = tuple[nn.Module, tuple[Any, ...]]
EXPERTS, HIDDEN, WIDTH = 4, 6, 8


class Experts(nn.Module):
    """A residual block of experts between two layers; ``route(self, x)`` says who works on what."""

    def __init__(self, route: Callable[..., Tensor]) -> None:
        super().__init__()
        self.route = route
        self.enter, self.gate, self.leave = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.grow = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.shrink = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))
        self.register_buffer("e_score_correction_bias", torch.randn(EXPERTS))

    def all_of(self, x: Tensor) -> Tensor:
        """Return what every expert makes of ``x``, ``(batch, experts, width)``."""
        return torch.einsum("bei,eio->beo", torch.einsum("bi,eio->beo", x, self.grow).relu(), self.shrink)

    def scores(self, x: Tensor) -> Tensor:
        """Return probabilities, and hide nothing of the buffer from the graph."""
        return (self.gate(x) + self.e_score_correction_bias).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        return self.leave(x + self.route(self, x))


class ModuleExperts(nn.Module):
    """Experts that are modules of their own."""

    def __init__(self, route: Callable[..., Tensor]) -> None:
        super().__init__()
        self.route = route
        self.enter, self.gate, self.leave = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        layers = (nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(EXPERTS))
        self.experts = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        return self.leave(x + self.route(self, x))


def _mixed(weights: Tensor, outputs: Tensor) -> Tensor:
    return torch.einsum("be,beo->bo", weights, outputs)


def scattered(self: Experts, x: Tensor) -> Tensor:
    probabilities = self.scores(x)
    values, chosen = probabilities.topk(2, -1)
    return _mixed(torch.zeros_like(probabilities).scatter(-1, chosen, values), self.all_of(x))


def as_vectors(self: Experts, x: Tensor) -> Tensor:
    values, chosen = self.scores(x).topk(2, -1)
    hits = one_hot(chosen, EXPERTS).to(values.dtype)
    return _mixed(torch.einsum("bk,bke->be", values.softmax(-1), hits), self.all_of(x))


def looked_up(self: Experts, x: Tensor) -> Tensor:
    values, chosen = self.scores(x).topk(2, -1)
    hidden = torch.einsum("bi,bkio->bko", x, self.grow[chosen]).relu()
    return (torch.einsum("bki,bkio->bko", hidden, self.shrink[chosen]) * values.unsqueeze(-1)).sum(1)


def rank_by_rank(self: Experts, x: Tensor) -> Tensor:
    values, chosen = self.scores(x).topk(2, -1)
    result = torch.zeros_like(x)
    for rank in range(2):
        hidden = torch.bmm(x.unsqueeze(1), self.grow[chosen[:, rank]]).relu()
        result = result + values[:, rank, None] * torch.bmm(hidden, self.shrink[chosen[:, rank]]).squeeze(1)
    return result


def best(self: Experts, x: Tensor) -> Tensor:
    probabilities = self.scores(x)
    chosen, values = probabilities.argmax(-1), probabilities.max(-1).values
    hidden = torch.bmm(x.unsqueeze(1), self.grow[chosen]).relu()
    return torch.bmm(hidden, self.shrink[chosen]).squeeze(1) * values.unsqueeze(-1)


def outputs_gathered(self: Experts, x: Tensor) -> Tensor:
    values, chosen = self.scores(x).topk(2, -1)
    outputs = self.all_of(x).gather(1, chosen.unsqueeze(-1).expand(-1, -1, WIDTH))
    return (outputs * values.softmax(-1).unsqueeze(-1)).sum(1)


def masked(self: Experts, x: Tensor) -> Tensor:
    scores = self.scores(x)
    least = scores.topk(2, -1).values[..., -1:]
    return _mixed(scores.masked_fill(scores < least, float("-inf")).softmax(-1), self.all_of(x))


def hits_only(self: Experts, x: Tensor) -> Tensor:
    scores = self.scores(x)
    hits = one_hot(scores.sort(-1, descending=True).indices[:, :2], EXPERTS).sum(1).bool()
    return _mixed(torch.where(hits, scores, torch.full_like(scores, float("-inf"))).softmax(-1), self.all_of(x))


def balanced(self: Experts, x: Tensor) -> Tensor:
    scores = self.gate(x).sigmoid()
    chosen = (scores + self.e_score_correction_bias).topk(2, -1, sorted=False).indices
    weights = scores.gather(1, chosen)
    weights = weights / weights.sum(-1, keepdim=True)
    return _mixed(torch.zeros_like(scores).scatter(1, chosen, weights), self.all_of(x))


def in_groups(self: Experts, x: Tensor) -> Tensor:
    scores = self.scores(x)
    totals = scores.view(-1, 2, 2).topk(2, -1).values.sum(-1)
    groups = torch.zeros_like(totals).scatter(1, totals.topk(1, -1).indices, 1.0)
    mask = groups.unsqueeze(-1).expand(-1, 2, 2).reshape(-1, EXPERTS)
    chosen = scores.masked_fill(~mask.bool(), 0.0).topk(2, -1).indices
    return _mixed(torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen)), self.all_of(x))


def reordered(self: Experts, x: Tensor) -> Tensor:
    values, chosen = self.scores(x).topk(2, -1, sorted=False)
    order = (values * values).argsort(-1)
    values, chosen = values.gather(1, order), chosen.gather(1, order)
    return _mixed(torch.zeros_like(self.gate(x)).scatter(1, chosen, values), self.all_of(x))


def with_capacity(self: Experts, x: Tensor) -> Tensor:
    values, chosen = self.scores(x).max(-1)
    hits = one_hot(chosen, EXPERTS)
    hits = hits * (hits.cumsum(0) <= 2)
    return _mixed(hits * values.unsqueeze(-1), self.all_of(x))


def experts_choose(self: Experts, x: Tensor) -> Tensor:
    values, tokens = self.scores(x).t().topk(3, -1)
    hidden = torch.einsum("ekh,ehi->eki", x[tokens], self.grow).relu()
    outputs = torch.einsum("eki,eio->eko", hidden, self.shrink) * values.unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, tokens.reshape(-1), outputs.reshape(-1, WIDTH))


def by_number(self: ModuleExperts, x: Tensor) -> Tensor:
    values, chosen = self.gate(x).softmax(-1).topk(2, -1)
    weights = (((chosen == number) * values).sum(-1, keepdim=True) for number in range(EXPERTS))
    return sum(weight * expert(x) for weight, expert in zip(weights, self.experts, strict=True))


def stacked(self: ModuleExperts, x: Tensor) -> Tensor:
    return _mixed(self.gate(x).softmax(-1), torch.stack([expert(x) for expert in self.experts], 1))


def joined(self: ModuleExperts, x: Tensor) -> Tensor:
    outputs = torch.cat([expert(x).unsqueeze(1) for expert in self.experts], 1)
    return (self.gate(x).softmax(-1).unsqueeze(-1) * outputs).sum(1)


def selected(self: ModuleExperts, x: Tensor) -> Tensor:
    weights = self.gate(x).softmax(-1)
    return sum(weights[:, number, None] * expert(x) for number, expert in enumerate(self.experts))


def sliced(self: ModuleExperts, x: Tensor) -> Tensor:
    weights = self.gate(x).softmax(-1)
    return sum(weights[:, number : number + 1] * expert(x) for number, expert in enumerate(self.experts))


def split_up(self: ModuleExperts, x: Tensor) -> Tensor:
    weights = self.gate(x).softmax(-1).split(1, -1)
    return sum(weight * expert(x) for weight, expert in zip(weights, self.experts, strict=True))


def token_by_token(self: ModuleExperts, x: Tensor) -> Tensor:
    values, chosen = self.gate(x).softmax(-1).topk(2, -1)
    result, hits = torch.zeros_like(x), one_hot(chosen, EXPERTS).permute(2, 1, 0)
    for number, expert in enumerate(self.experts):
        rank, token = torch.where(hits[number])
        result = result.index_add(0, token, expert(x[token]) * values[token, rank, None])
    return result


def first_or_not(self: Experts, x: Tensor) -> Tensor:
    probabilities = self.scores(x)
    first = probabilities.argmax(-1, keepdim=True).bool()
    return _mixed(probabilities * first, self.all_of(x))


def too_many_rows(self: Experts, x: Tensor) -> Tensor:
    rows = torch.cat([self.e_score_correction_bias, x.new_zeros(1)])
    return self.all_of(x).sum(1) * nn.functional.embedding(self.gate(x).argmax(-1), rows.unsqueeze(-1))


def written(self: Experts, x: Tensor) -> Tensor:
    numbers = torch.zeros(len(x), EXPERTS, dtype=torch.long)
    numbers = numbers.scatter(1, torch.zeros_like(numbers[:, :1]), self.gate(x).argmax(-1, keepdim=True))
    return self.all_of(x).sum(1) * numbers.sum(-1, keepdim=True)


def ranked(self: Experts, x: Tensor) -> Tensor:
    probabilities = self.scores(x)
    return _mixed(probabilities * (probabilities.argsort(-1).argsort(-1) >= 2), self.all_of(x))


def sorted_by_expert(self: Experts, x: Tensor) -> Tensor:
    values, chosen = self.scores(x).max(-1)
    order = chosen.argsort(stable=True)
    hidden = torch.bmm(x[order].unsqueeze(1), self.grow[chosen[order]]).relu()
    outputs = torch.bmm(hidden, self.shrink[chosen[order]]).squeeze(1)
    return outputs[order.argsort()] * values.unsqueeze(-1)


def single_outputs(self: ModuleExperts, x: Tensor) -> Tensor:
    outputs = torch.cat([expert(x).sum(-1, keepdim=True) for expert in self.experts], 1)
    return (self.gate(x).softmax(-1) * outputs).sum(-1, keepdim=True)


def _built(network: nn.Module) -> Built:
    return network, (torch.randn(7, 5),)


def _routed(route: Callable[..., Tensor]) -> Callable[[], Built]:
    return lambda: _built(Experts(route))


ROUTED = {
    f"experts_{route.__name__}": _routed(route)
    for route in (
        *(scattered, as_vectors, looked_up, rank_by_rank, best, outputs_gathered, masked, hits_only),
        *(balanced, in_groups, reordered, with_capacity, experts_choose),
    )
}

#: Way of routing -> the network, and the operator that tells its experts apart.
TOLD_APART: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        route.__name__: (partial(ModuleExperts, route), operator)
        for route, operator in {
            by_number: "eq",
            stacked: "stack",
            joined: "cat",
            single_outputs: "cat",
            selected: "select",
            sliced: "slice",
            split_up: "split",
            token_by_token: "select",
        }.items()
    },
    **{
        route.__name__: (partial(Experts, route), operator)
        for route, operator in {
            ranked: "argsort",
            sorted_by_expert: "argsort",
            first_or_not: "_to_copy",
            too_many_rows: "embedding",
            written: "scatter",
        }.items()
    },
}


def _old(function: Callable[..., nn.Module], *args: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(*args)


def _spectral(norm: Callable[..., nn.Module]) -> Built:
    return nn.Sequential(
        *(_old(norm, nn.Conv2d(3, 6, 3)), nn.ReLU(), _old(norm, nn.ConvTranspose2d(6, 8, 2)), nn.ReLU()),
        *(_old(norm, nn.Conv2d(8, 10, 3, groups=2)), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(_old(norm, nn.Linear(40, 7)), nn.ReLU(), nn.Linear(7, 2)),
    ), (torch.randn(2, 3, 8, 8),)


def _weight_normed(norm: Callable[..., nn.Module]) -> Built:
    return nn.Sequential(
        *(_old(norm, nn.Conv1d(4, 12, 3)), nn.ReLU(), _old(norm, nn.Conv1d(12, 6, 3)), nn.ReLU(), nn.Flatten()),
        *(_old(norm, nn.Linear(30, 7)), nn.ReLU(), _old(norm, nn.Linear(7, 3))),
    ), (torch.randn(2, 4, 9),)


class PowerIteration(nn.Linear):
    """A spectral norm that keeps one singular vector and finds the other in every call (as in BigGAN)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("u0", torch.randn(1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        right = nn.functional.normalize(self.u0 @ self.weight)
        left = nn.functional.normalize(right @ self.weight.T)
        return nn.functional.linear(x, self.weight / (right @ self.weight.T @ left.T), self.bias)


NORMED: dict[str, Callable[[], Built]] = {
    "spectral_norm": lambda: _spectral(parametrizations.spectral_norm),
    "spectral_norm_old": lambda: _spectral(nn.utils.spectral_norm),
    "spectral_norm_own": lambda: _built(nn.Sequential(PowerIteration(5, 9), nn.ReLU(), PowerIteration(9, 3))),
    "weight_norm": lambda: _weight_normed(parametrizations.weight_norm),
    "weight_norm_old": lambda: _weight_normed(nn.utils.weight_norm),
}
