"""Files that hold experts one by one give the soups, paths and estimates of a network that stacks them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.soups import (
    AdaMergingOptions,
    LocalizationOptions,
    adamerging,
    compare_recipes,
    flatness,
    gain,
    localize_and_stitch,
    model_stock_soup,
    soup_against_ensemble,
)
from weightspace.tasks import ClassificationTask, Examples

EXPERTS, WIDTH, UNITS, CLASSES = 3, 6, 4, 4
Models = list[StateDict]


class Experts(nn.Module):
    """Experts as transformers 5 stacks them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * UNITS, WIDTH) / 2)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, UNITS) / 2)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("euw,nw->enu", self.gate_up_proj, x).chunk(2, dim=-1)
        return torch.einsum("ewu,enu->enw", self.down_proj, gate.tanh() * up)


class Router(nn.Module):
    """A mixture of all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, EXPERTS, bias=False), Experts()

    def forward(self, x: Tensor) -> Tensor:
        return (self.gate(x).softmax(-1).T[..., None] * self.experts(x)).sum(0)


class Mixture(nn.Module):
    """A mixture of experts in a module, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"mlp": Router()})
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.model["mlp"](x)))


def examples() -> dict[Any, Examples]:
    generator = torch.Generator().manual_seed(0)
    centres, labels = torch.randn(CLASSES, WIDTH, generator=generator), torch.arange(40) % CLASSES
    return {
        split: Examples(centres[labels] + torch.randn(40, WIDTH, generator=generator), labels)
        for split in ("train", "validation", "test")
    }


TASK = ClassificationTask("mixture", Mixture, examples)


def separate(state: StateDict) -> StateDict:
    """Return a model under the names of Mixtral's files."""
    found: StateDict = {}
    for name, tensor in state.items():
        for number in range(EXPERTS):
            one = f"model.block_sparse_moe.experts.{number}"
            if name.endswith("gate_up_proj"):
                found[f"{one}.w1.weight"] = tensor[number, :UNITS].clone()
                found[f"{one}.w3.weight"] = tensor[number, UNITS:].clone()
            elif name.endswith("down_proj"):
                found[f"{one}.w2.weight"] = tensor[number].clone()
        if ".experts." not in name:
            found[name.replace("mlp.gate", "block_sparse_moe.gate")] = tensor
    return found


def check_equal(found: StateDict, expected: StateDict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.fixture(scope="module")
def models() -> Models:
    return [ws.train(TASK, seed, epochs=2) for seed in range(3)]


SOUPS: dict[str, Callable[[Any], StateDict]] = {
    "uniform": lambda models: ws.uniform_soup(models, TASK),
    "greedy": lambda models: ws.greedy_soup(models, TASK, cache=False).state,
    "learned": lambda models: ws.learned_soup(models, TASK, epochs=2).state,
    "model_stock": lambda models: model_stock_soup(models[1:], models[0], TASK),
    "adamerging": lambda models: adamerging(models[1:], models[0], [TASK], options=AdaMergingOptions(steps=2)).state,
    "wise_ft": lambda models: ws.wise_ft(models[0], models[1], TASK, [0.5], cache=False).state,
}


@pytest.mark.parametrize("name", SOUPS)
def test_soups_of_files_with_separate_experts_are_those_of_stacked_ones(
    name: str, models: Models, tmp_path: Path
) -> None:
    expected = SOUPS[name](models)
    files = [tmp_path / f"{number}.safetensors" for number in range(len(models))]
    for file, state in zip(files, models, strict=True):
        ws.save_checkpoint(separate(state), file)
    check_equal(SOUPS[name](files), separate(expected))
    mixed = [models[0], *files[1:]]  # the soup has the layout of the first model
    check_equal(SOUPS[name](mixed), separate(expected) if name == "model_stock" else expected)


def test_masks_of_separate_experts_are_those_of_stacked_ones(models: Models) -> None:
    alike = [{**model, **{name: models[0][name] for name in models[0] if "norm." in name}} for model in models]
    options = LocalizationOptions(epochs=1)
    expected = localize_and_stitch(alike[1:], alike[0], [TASK, TASK], options=options).state
    files = [separate(state) for state in alike]
    check_equal(localize_and_stitch(files[1:], files[0], [TASK, TASK], options=options).state, separate(expected))


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "barrier": lambda m: ws.barrier(ws.loss_curve(TASK, m[0], m[1], 3)),
    "repair": lambda m: ws.loss_curve(TASK, m[0], m[1], 3, statistics="repair").loss,
    "plane": lambda m: ws.loss_plane(TASK, m[0], m[1], m[2], resolution=2).loss,
    "taylor": lambda m: ws.taylor_barrier(TASK, m[0], m[1]),
    "flatness": lambda m: flatness(m[0], m[1:2], TASK, directions=1, points=3).lines[0].loss,
    "gain": lambda m: gain(m[0], m[1], m[2], TASK).gain,
    "soup_against_ensemble": lambda m: soup_against_ensemble(m[0], m[1], TASK).soup,
    "compare": lambda m: compare_recipes(m, TASK, ["greedy", "learned", "ensemble"], cache=False).rows[1].scores,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_separate_experts_have_the_losses_of_stacked_ones(name: str, models: Models) -> None:
    assert NUMBERS[name]([separate(state) for state in models]) == NUMBERS[name](models)


def test_an_expert_too_few_is_named(models: Models) -> None:
    lacking = {name: tensor for name, tensor in separate(models[0]).items() if "experts.2.w2" not in name}
    with pytest.raises(ws.CheckpointError, match=r"model\.mlp\.experts\.gate_up_proj"):
        ws.taylor_barrier(TASK, lacking, models[1])


def test_experts_that_are_stacked_are_not_held_twice(models: Models, tmp_path: Path) -> None:
    from weightspace.checkpoints.name_maps.expert_layout import expert_layout
    from weightspace.tasks import shapes_of

    state = separate(models[0])
    expert_layout(shapes_of(Mixture()), state).stacked(state, consume=True)
    assert not any(".experts." in name for name in state)
