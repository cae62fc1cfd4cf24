"""Least squares after alignment: against solutions that are known, and on networks trained apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.connectivity import reset_statistics
from weightspace.merging import least_squares
from weightspace.tasks import Task


class Forward:
    """A task that only runs a network on inputs."""

    name, objective = "forward", "loss"

    def __init__(self, build: Callable[[], nn.Module], inputs: Tensor) -> None:
        self.network, self.inputs, self.example_args = build, inputs, (inputs[:2],)

    def score(self, module: nn.Module, split: str = "test") -> dict[str, float]:
        return {"loss": 0.0}

    def batches(self, split: str, seed: int) -> Any:
        return iter(self.inputs.split(8))

    def loss(self, module: nn.Module, batch: Tensor) -> Tensor:
        return module(batch).square().mean()


def states_of(build: Callable[[], nn.Module], count: int = 2) -> list[StateDict]:
    torch.manual_seed(0)
    return [{name: tensor.clone() for name, tensor in build().state_dict().items()} for _ in range(count)]


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (two_layers, (40, 4)),
    "positions": (two_layers, (20, 5, 4)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()), (20, 4, 7, 6)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, (3, 2), groups=2, padding="same", bias=False)), (20, 4, 5, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_copies_give_the_copy_bit_for_bit(kind: str) -> None:
    build, shape = LAYERS[kind]
    (state,) = states_of(build, 1)
    merged = least_squares(Forward(build, torch.randn(shape)), [state] * 3, weights=[0.2, 0.5, 0.3])
    assert list(merged) == list(state)
    assert all(torch.equal(merged[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_the_first_layer_is_the_mean_since_its_inputs_are_shared(kind: str, weights: list[float] | None) -> None:
    build, shape = LAYERS[kind]
    states = states_of(build)
    merged = least_squares(Forward(build, torch.randn(shape)), states, weights=weights)
    mean = ws.merge(states, weights=weights)
    first = next(iter(mean))
    torch.testing.assert_close(merged[first], mean[first], rtol=1e-5, atol=1e-6)


def test_a_later_layer_maps_what_it_will_read_to_the_mean_output() -> None:
    states, factors = states_of(two_layers, 3), [0.5, 0.2, 0.3]
    inputs = torch.randn(64, 4)
    merged = least_squares(Forward(two_layers, inputs), states, weights=[5, 2, 3], ridge=0, examples=64)
    hidden = [torch.tanh(inputs @ state["0.weight"].T + state["0.bias"]).double() for state in [merged, *states]]
    outputs = [part @ state["2.weight"].double().T for part, state in zip(hidden[1:], states, strict=True)]
    target = sum(factor * part for factor, part in zip(factors, outputs, strict=True))
    expected = torch.linalg.lstsq(hidden[0], target).solution.T
    torch.testing.assert_close(merged["2.weight"], expected.float(), rtol=1e-4, atol=1e-5)


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1))


def test_a_grouped_convolution_with_a_bias_leaves_a_residual_orthogonal_to_its_inputs() -> None:
    states, images = states_of(grouped), torch.randn(16, 2, 7, 7)
    merged = least_squares(Forward(grouped, images), states, ridge=0)
    nets = [grouped() for _ in states]
    for net, state in zip(nets, states, strict=True):
        net.load_state_dict(state)
    net = grouped()
    net.load_state_dict(merged)
    middle = net[:2](images).detach()
    target = sum(net(images) for net in nets) / 2
    layer = net[2]
    (layer(middle) - target.detach()).square().mean().backward()
    assert max(float(parameter.grad.abs().max()) for parameter in layer.parameters()) < 1e-5
    mean = ws.merge(states)
    error = (layer(middle) - target).square().mean()
    layer.load_state_dict({"weight": mean["2.weight"], "bias": mean["2.bias"]})
    assert error < (layer(middle) - target).square().mean()


def test_what_data_leave_open_is_the_mean() -> None:
    states, inputs = states_of(lambda: nn.Sequential(nn.Linear(4, 3))), torch.randn(16, 4)
    inputs[:, 1:] = 0
    task = Forward(lambda: nn.Sequential(nn.Linear(4, 3)), inputs)
    merged, mean = least_squares(task, states), ws.merge(states)
    torch.testing.assert_close(merged["0.weight"], mean["0.weight"])


@pytest.mark.filterwarnings("ignore:.*running statistics")
@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_it_lowers_the_loss_halfway_between_matched_networks(
    name: str, trained: Callable[[str, int], StateDict]
) -> None:
    task = ws.load_task(name)
    a, b = (trained(name, seed) for seed in (0, 1))
    spec = ws.derive_spec(task.network(), task.example_args)
    aligned = ws.permute(spec, ws.activation_matching(spec, a, b, task=task).permutation, b)

    def loss(state: StateDict) -> float:
        network = task.network()
        network.load_state_dict(reset_statistics(task, state))
        return task.score(network)["loss"]

    fitted, mean = least_squares(task, [a, aligned]), ws.merge([a, aligned])
    assert loss(fitted) < 0.9 * loss(mean)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(7, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp, self.head = nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.embed(tokens)
        return self.head(self.mlp(features + self.attention(features, features, features)[0]))


def test_layers_that_cannot_be_fitted_are_means_and_named() -> None:
    states, task = states_of(Shared), Forward(Shared, torch.arange(24).view(8, 3) % 7)
    with pytest.warns(ws.WeightspaceWarning, match=r"left 3 layers .*: attention, attention\.out_proj, head\."):
        merged = least_squares(task, states)
    mean = ws.merge(states)
    differing = {name for name in mean if not torch.equal(mean[name], merged[name])}
    assert differing <= {"mlp.weight", "mlp.bias"}
    assert "mlp.weight" in differing
    assert torch.equal(merged["head.weight"], merged["embed.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "at least one example"),
        ({"ridge": -1.0}, "ridge of -1.0"),
        ({"weights": [1.0, -1.0]}, "sum"),
        ({"weights": [1.0]}, "weights"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ws.WeightspaceError, match=message):
        least_squares(Forward(two_layers, torch.randn(8, 4)), states_of(two_layers), **options)


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ws.WeightspaceError, match="layer '0' are not finite"):
        least_squares(Forward(two_layers, torch.full((8, 4), torch.inf)), states_of(two_layers))


def test_networks_of_another_architecture_are_refused(digits_mlp: Task) -> None:
    with pytest.raises(ws.CheckpointError, match="the network of digits-mlp"):
        least_squares(digits_mlp, states_of(two_layers))


class Twice(nn.Module):
    """Layers that read the same tensor, one that runs twice, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        return self.last(first.tanh()) + self.last(second.tanh())


def test_layers_that_read_the_same_tensor_are_one_step_and_calls_add_up() -> None:
    states, inputs = states_of(Twice), torch.randn(32, 4)
    steps: list[str] = []
    with pytest.warns(ws.WeightspaceWarning, match="left 1 layers .*: idle"):
        merged = least_squares(Forward(Twice, inputs), states, ridge=0, on_progress=lambda at: steps.append(at.name))
    assert steps == ["first", "last"]

    def read_and_written(state: StateDict) -> tuple[Tensor, Tensor]:
        hidden = [(inputs @ state[f"{name}.weight"].T + state[f"{name}.bias"]).tanh() for name in ("first", "second")]
        rows = nn.functional.pad(torch.cat(hidden), (0, 1), value=1.0).double()
        return rows, rows @ torch.cat([state["last.weight"], state["last.bias"][:, None]], 1).double().T

    target = sum(read_and_written(state)[1] for state in states) / 2
    expected = torch.linalg.lstsq(read_and_written(merged)[0], target).solution.T
    torch.testing.assert_close(merged["last.weight"], expected[:, :-1].float(), rtol=1e-4, atol=1e-5)


def test_networks_that_run_a_layer_differently_often_are_refused() -> None:
    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.times = nn.Linear(4, 4), nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(self.times) + 1):
                x = self.layer(x)
            return x

    states = states_of(Looping)
    states[1]["times"] += 2
    with pytest.raises(ws.WeightspaceError, match="layer 'layer' on different numbers of inputs"):
        least_squares(Forward(Looping, torch.randn(8, 4)), states)
