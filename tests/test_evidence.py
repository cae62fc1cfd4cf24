"""Statistics of data for merging: against definitions, and end to end into the merges that read them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.evidence import collect_evidence
from weightspace.tasks import Task


class Regression:
    """A task on random inputs, in batches of a form of its own."""

    name, objective = "regression", "loss"

    def __init__(self, layer: nn.Module, inputs: Tensor, batch: Any = None) -> None:
        self.layer, self.inputs, self.batch = layer, inputs, batch or (lambda part: part)
        self.example_args = (inputs[:1],)

    def network(self) -> nn.Module:
        return self.layer

    def score(self, module: nn.Module, split: str = "test") -> dict[str, float]:
        return {"loss": 0.0}

    def batches(self, split: str, seed: int) -> Iterator[Any]:
        yield from map(self.batch, self.inputs.split(8))

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        inputs = batch["x"][0] if isinstance(batch, dict) else batch
        return module(inputs).square().mean()


def state_of(module: nn.Module) -> StateDict:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 5, 3, bias=False),
    "strided and padded": nn.Conv2d(3, 5, (3, 2), stride=2, padding=(1, 2), bias=False),
    "dilated": nn.Conv2d(3, 5, 3, dilation=2, bias=False),
    "same": nn.Conv2d(3, 5, (4, 3), padding="same", bias=False),
    "valid": nn.Conv2d(3, 5, 3, padding="valid", bias=False),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_gram_of_a_convolution_gives_the_mean_square_of_its_outputs(kind: str) -> None:
    layer = nn.Sequential(CONVOLUTIONS[kind])
    task = Regression(layer, torch.randn(20, 3, 9, 8))
    gram = collect_evidence(task, state_of(layer), "gram")["0.weight"]
    weight = layer[0].weight.detach().flatten(1).double()
    expected = layer(task.inputs).detach().double().square().mean()
    assert torch.trace(weight @ gram @ weight.T) / 5 == pytest.approx(float(expected), rel=1e-5)


def test_the_gram_of_a_linear_layer_is_the_mean_product_of_its_inputs() -> None:
    layer = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs = torch.randn(20, 4)
    found = collect_evidence(Regression(layer, inputs), state_of(layer), "gram", examples=11)
    hidden = layer[:2](inputs[:11]).detach().double()
    assert found.keys() == {"0.weight", "2.weight"}
    torch.testing.assert_close(found["2.weight"], hidden.T @ hidden / 11)


@pytest.mark.parametrize("batch", [None, lambda part: {"x": [part], "note": "none"}], ids=["tensor", "nested"])
def test_the_fisher_information_is_the_mean_square_of_the_gradients_of_single_examples(batch: Any) -> None:
    layer = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    inputs = torch.randn(13, 4)
    found = collect_evidence(Regression(layer, inputs, batch), state_of(layer), "fisher", examples=10)
    squares = {name: torch.zeros_like(one) for name, one in layer.named_parameters()}
    for row in inputs[:10]:
        layer.zero_grad()
        layer(row[None]).square().mean().backward()
        for name, one in layer.named_parameters():
            squares[name] += one.grad.square() / 10
    for name, expected in squares.items():
        torch.testing.assert_close(found[name], expected)


def test_regmean_has_the_outputs_of_the_models_on_their_own_data() -> None:
    models = [nn.Sequential(nn.Linear(6, 4, bias=False)) for _ in range(2)]
    # Each model's data lies in three directions of its own: one layer can serve both exactly.
    data = [torch.zeros(40, 6), torch.zeros(40, 6)]
    data[0][:, :3], data[1][:, 3:] = torch.randn(40, 3), torch.randn(40, 3)
    states = [state_of(model) for model in models]
    evidence = [collect_evidence(Regression(m, x), state_of(m), "gram") for m, x in zip(models, data, strict=True)]
    merged = ws.merge(states, "regmean", evidence=evidence, parameters={"reduce": 1.0})["0.weight"]
    for model, inputs in zip(models, data, strict=True):
        torch.testing.assert_close(inputs @ merged.T, model(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_fisher_merging_keeps_more_of_two_networks_than_their_mean(
    digits_mlp: Task, mlp_states: tuple[StateDict, StateDict]
) -> None:
    spec = ws.derive_spec(digits_mlp.network(), digits_mlp.example_args)
    a, b = mlp_states
    b = ws.permute(spec, ws.weight_matching(spec, a, b, seed=0).permutation, b)
    evidence = [collect_evidence(digits_mlp, state, "fisher", examples=64) for state in (a, b)]
    module = digits_mlp.network()
    module.load_state_dict(ws.merge([a, b], "fisher", evidence=evidence))
    assert digits_mlp.score(module)["accuracy"] > 0.9


def test_mistakes_are_one_line() -> None:
    layer = nn.Sequential(nn.Linear(4, 3))
    task = Regression(layer, torch.randn(8, 4))
    with pytest.raises(WeightspaceError, match=r"Unknown kind of evidence .fischer.*fisher"):
        collect_evidence(task, state_of(layer), "fischer")
    with pytest.raises(WeightspaceError, match="no batches"):
        collect_evidence(Regression(layer, torch.randn(0, 4)), state_of(layer), "gram")
    with pytest.raises(WeightspaceError, match="one row per example"):
        collect_evidence(Regression(layer, torch.randn(8, 4), lambda part: (part, part[:3])), state_of(layer), "gram")
    with pytest.raises(WeightspaceError, match="do not fit together"):
        collect_evidence(task, {}, "gram")
