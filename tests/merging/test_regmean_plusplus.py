"""RegMean++: every block on what comes through the merged blocks before it, and through its own model inside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.merging import merge, regmean_plusplus
from weightspace.progress import Progress


class Block(nn.Module):
    """A residual block with two linear layers, the second on the outputs of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(20, 6), nn.ModuleList([Block(), Block()])
        self.inner, self.head = nn.Linear(6, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.relu(self.inner(x)))


class Data:
    """A task that only runs a network on inputs."""

    objective = "loss"

    def __init__(self, inputs: Tensor, build: Callable[[], nn.Module] = Network) -> None:
        self.network, self.inputs, self.example_args, self.name = build, inputs, (inputs[:2],), "data"

    def score(self, module: nn.Module, split: str = "test") -> dict[str, float]:
        return {"loss": 0.0}

    def batches(self, split: str, seed: int) -> Any:
        return iter(self.inputs.split(7))

    def loss(self, module: nn.Module, batch: Tensor) -> Tensor:
        return module(batch).square().mean()


@pytest.fixture
def tokens() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(low, low + 12, (30, 4), generator=generator) for low in (0, 4, 8)]


@pytest.fixture
def states() -> list[StateDict]:
    torch.manual_seed(0)
    return [{name: tensor.clone() for name, tensor in Network().state_dict().items()} for _ in range(3)]


def solved(weights: list[Tensor], inputs: list[Tensor], reduce: float) -> Tensor:
    """RegMean of the weights, on inputs of any leading shape."""
    grams = []
    for x in inputs:
        rows = x.double().reshape(-1, x.shape[-1])
        gram = rows.T @ rows / len(rows)
        grams.append(reduce * gram + (1 - reduce) * gram.diagonal().diag())
    right = sum(w.double() @ g for w, g in zip(weights, grams, strict=True))
    return torch.linalg.solve(sum(grams), right.T).T  # type: ignore[arg-type, union-attr]


def block_by_block(states: list[StateDict], tokens: list[Tensor], reduce: float) -> StateDict:
    """The algorithm of the authors: a block's layers on what its own model makes of the merged blocks' outputs."""
    merged = {name: sum(s[name].double() for s in states) / len(states) for name in states[0]}

    def named(state: StateDict, prefix: str) -> list[Tensor]:
        names = ("norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias")
        return [state[f"{prefix}.{name}"].double() for name in names]

    def inside(state: StateDict, prefix: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gain, shift, up, up_bias, down, down_bias = named(state, prefix)
        normed = nn.functional.layer_norm(x, (6,), gain, shift)
        hidden = torch.tanh(normed @ up.T + up_bias)
        return normed, hidden, x + hidden @ down.T + down_bias

    streams = [merged["embedding.weight"][one] for one in tokens]
    for prefix in ("layers.0", "layers.1"):
        own = [inside(state, prefix, x) for state, x in zip(states, streams, strict=True)]
        for at, part in enumerate(("up", "down")):
            weights = [state[f"{prefix}.{part}.weight"] for state in states]
            merged[f"{prefix}.{part}.weight"] = solved(weights, [found[at] for found in own], reduce)
        streams = [inside(merged, prefix, x)[2] for x in streams]
    merged["inner.weight"] = solved([state["inner.weight"] for state in states], streams, reduce)
    hidden = [torch.relu(x @ merged["inner.weight"].T) for x in streams]
    merged["head.weight"] = solved([state["head.weight"] for state in states], hidden, reduce)
    return merged


@pytest.mark.parametrize("reduce", [0.95, 0.3])
def test_blocks_are_merged_on_what_comes_through_the_merged_ones(
    reduce: float, states: list[StateDict], tokens: list[Tensor]
) -> None:
    events: list[Progress] = []
    tasks = [Data(inputs) for inputs in tokens]
    found = regmean_plusplus(tasks, states, reduce=reduce, on_progress=events.append)
    expected = block_by_block(states, tokens, reduce)
    assert list(found) == list(states[0])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=1e-4, atol=1e-5, msg=name)
    assert [event.name for event in events] == ["layers.0.up", "layers.1.up", "inner", "head"]


def test_it_differs_from_regmean_behind_the_first_block(states: list[StateDict], tokens: list[Tensor]) -> None:
    tasks = [Data(inputs) for inputs in tokens]
    same = [{**state, "embedding.weight": states[0]["embedding.weight"]} for state in states]
    evidence = [ws.collect_evidence(task, state, "gram") for task, state in zip(tasks, same, strict=True)]
    old = merge(same, "regmean", evidence=evidence, parameters={"reduce": 0.95})
    new = regmean_plusplus(tasks, same)
    torch.testing.assert_close(new["layers.0.down.weight"], old["layers.0.down.weight"], rtol=1e-4, atol=1e-5)
    assert (new["layers.1.up.weight"] - old["layers.1.up.weight"]).abs().max() > 1e-3


def test_copies_give_the_copy_bit_for_bit_and_inputs_are_unchanged(
    states: list[StateDict], tokens: list[Tensor]
) -> None:
    before = {name: tensor.clone() for name, tensor in states[0].items()}
    found = regmean_plusplus([Data(inputs) for inputs in tokens], [states[0]] * 3)
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in before.items())


def test_only_as_many_examples_are_used_as_are_asked_for(states: list[StateDict], tokens: list[Tensor]) -> None:
    few = regmean_plusplus([Data(inputs[:10]) for inputs in tokens], states)
    found = regmean_plusplus([Data(inputs) for inputs in tokens], states, examples=10)
    assert all(torch.equal(found[name], tensor) for name, tensor in few.items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.embedding, self.head = nn.Linear(6, 6), nn.Embedding(20, 6), nn.Linear(6, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(self.embedding(x)))


def test_layers_whose_weights_are_shared_stay_means_with_a_warning(tokens: list[Tensor]) -> None:
    torch.manual_seed(0)
    states = [{name: tensor.clone() for name, tensor in Tied().state_dict().items()} for _ in range(2)]
    with pytest.warns(WeightspaceWarning, match=r"left 1 layers as means.*: head\."):
        found = regmean_plusplus([Data(inputs, Tied) for inputs in tokens[:2]], states)
    assert torch.equal(found["head.weight"], merge(states)["head.weight"])


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (2, {}, "one task per model; found 2 tasks for 3 models"),
        (3, {"reduce": 1.5}, "Found reduce=1.5; expected a factor from 0 to 1"),
        (3, {"examples": 0}, "at least one example; found examples=0"),
    ],
)
def test_mistakes_are_one_line(
    count: int, options: dict[str, Any], message: str, states: list[StateDict], tokens: list[Tensor]
) -> None:
    with pytest.raises(WeightspaceError, match=message):
        regmean_plusplus([Data(inputs) for inputs in tokens[:count]], states, **options)


def test_infinite_inputs_are_refused_by_name(states: list[StateDict], tokens: list[Tensor]) -> None:
    broken = [{**state, "embedding.weight": torch.full((20, 6), 1e38)} for state in states]
    with pytest.raises(WeightspaceError, match=r"inputs of '.*' are not finite"):
        regmean_plusplus([Data(inputs) for inputs in tokens], broken)


def test_the_command_writes_what_the_function_returns(tmp_path: Path) -> None:
    task = ws.load_task("digits-mlp")
    models = [ws.train(task, seed, epochs=1) for seed in (0, 1)]
    paths = [str(tmp_path / f"{index}.safetensors") for index in (0, 1)]
    for path, model in zip(paths, models, strict=True):
        ws.save_checkpoint(model, path)
    out = str(tmp_path / "merged.safetensors")
    command = ["regmean-plusplus", *paths, "--task", "digits-mlp", "--examples", "32", "-o", out, "--json"]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["reduce"] == 0.95
    found, expected = ws.load_checkpoint(out), regmean_plusplus([task, task], models, examples=32)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    wrong = [*command[:3], "--task", "digits-mlp", *["--task", "digits-mlp"] * 2, "-o", out]
    assert "Found 3 tasks for 2 checkpoints" in CliRunner().invoke(cli.main, wrong).output
