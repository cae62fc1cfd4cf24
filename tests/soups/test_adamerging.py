"""AdaMerging: coefficients that go downhill on the entropy of predictions, by the gradient that autograd finds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kitchen import PLAIN, TASK, equal, fine_tunes, saved
from torch import Tensor, nn
from torch.func import functional_call
from weightspace.cli import main

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.progress import Progress
from weightspace.soups import AdaMergingOptions, adamerging
from weightspace.soups.adamerging import _TaskVectorMixture
from weightspace.soups.elected_models import elected_models
from weightspace.soups.entropy import prediction_entropy
from weightspace.soups.scoring import Scorer
from weightspace.tasks import ClassificationTask, Examples, network_with


def entropy_of(logits: Tensor) -> Tensor:
    """The mean entropy of the softmax."""
    shares = logits.softmax(1)
    return -(shares * shares.log()).sum(1).mean()


@pytest.mark.parametrize("per", ["tensor", "layer", "model"])
def test_the_gradient_is_that_of_the_entropy_by_the_coefficients(per: Any) -> None:
    base, models = fine_tunes(PLAIN, 3)
    wide = ClassificationTask("wide", lambda: PLAIN.build().double(), PLAIN.load)
    states = [{name: tensor.double() for name, tensor in state.items()} for state in (base, *models)]
    mixture = _TaskVectorMixture(states, Scorer(wide).network, per, 0.3)
    for number, raw in enumerate(mixture.raw.values()):
        raw.data += 0.2 * torch.rand(3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    inputs, labels = PLAIN.examples["validation"]

    free = {group: raw.detach().clone().requires_grad_() for group, raw in mixture.raw.items()}
    merged = {
        name: states[0][name]
        + sum(share * (state[name] - states[0][name]) for share, state in zip(free[group], states[1:], strict=True))
        for name, group in mixture.groups.items()
    }
    logits = functional_call(wide.network(), merged, (inputs.double(),))  # type: ignore[arg-type]
    entropy_of(logits).backward()

    mixture.mix()
    found = prediction_entropy(wide, mixture.network, (inputs.double(), labels))
    torch.testing.assert_close(found, entropy_of(logits))
    found.backward()
    mixture.pull()
    for group, expected in free.items():
        torch.testing.assert_close(mixture.raw[group].grad, expected.grad, rtol=1e-9, atol=1e-12)


def test_coefficients_beyond_the_bounds_are_clamped_and_have_no_gradient() -> None:
    base, models = fine_tunes(PLAIN, 2)
    mixture = _TaskVectorMixture([base, *models], Scorer(PLAIN).network, "model", 0.3)
    mixture.raw[""].data = torch.tensor([1.2, 0.5], dtype=torch.float64)
    assert mixture.coefficients()[""].tolist() == [-0.5, 1, 0.5]
    mixture.mix()
    prediction_entropy(PLAIN, mixture.network, PLAIN.examples["validation"]).backward()
    mixture.pull()
    gradient = mixture.raw[""].grad
    assert gradient is not None
    assert gradient[0] == 0
    assert gradient[1] != 0


@pytest.mark.parametrize("ties", [False, True])
def test_the_entropy_falls_and_the_start_is_task_arithmetic(ties: bool) -> None:
    base, models = fine_tunes(PLAIN, 3)
    told: list[Progress] = []
    chosen = AdaMergingOptions(steps=60, learning_rate=0.01, density=0.5)
    merged = adamerging(models, base, [PLAIN], ties=ties, options=chosen, on_progress=told.append)
    assert list(merged.coefficients) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(0 <= share <= 1 for shares in merged.coefficients.values() for share in shares)
    assert merged.entropies[-1] < merged.entropies[0]
    assert [at.value for at in told] == list(merged.entropies)
    start = adamerging(models, base, [PLAIN], ties=ties, options=AdaMergingOptions(steps=0, density=0.5))
    method = {"density": 0.5, "scope": "model", "normalize": False} if ties else {}
    sum_of = ws.merge(models, "ties" if ties else "task_arithmetic", base=base, parameters={"lambda": 0.3, **method})
    for name, tensor in sum_of.items():
        torch.testing.assert_close(start.state[name], tensor)
    assert start.scores["start"] == start.scores["adamerging"] == merged.scores["start"]
    assert merged.scores["adamerging"]["plain"]["test"] == PLAIN.score(network_with(PLAIN, merged.state), "test")


def test_labels_have_no_effect() -> None:
    base, models = fine_tunes(PLAIN, 2)
    unlabelled = {
        split: Examples(inputs, torch.full_like(labels, 999 if split == "train" else 0))  # there is no such class
        for split, (inputs, labels) in PLAIN.examples.items()
    }
    tasks = PLAIN, ClassificationTask("plain", PLAIN.build, lambda: unlabelled)
    found = [adamerging(models, base, [task], options=AdaMergingOptions(steps=5, split="train")) for task in tasks]
    assert equal(found[0].state, found[1].state)
    assert found[0].entropies == found[1].entropies


def test_a_model_whose_predictions_are_noise_gets_less_than_one_that_is_certain() -> None:
    base, (good, *_) = fine_tunes(PLAIN, 1, steps=60)
    uncertain = {name: tensor / 4 if name.startswith("2.") else tensor for name, tensor in base.items()}
    merged = adamerging(
        [uncertain, good], base, [PLAIN], "model", options=AdaMergingOptions(steps=60, learning_rate=0.02)
    )
    shares = merged.coefficients[""]
    assert shares[0] < 0.1
    assert shares[1] > 0.9


@dataclass(frozen=True)
class Headed:
    """A task with a head of its own on the outputs of the network, which the network doesn't have."""

    name: str
    head: Tensor
    objective: str = "loss"

    @property
    def example_args(self) -> Any:
        return PLAIN.example_args

    def network(self) -> nn.Module:
        return PLAIN.network()

    def logits(self, module: nn.Module, batch: Any) -> Tensor:
        return module(batch[0]) @ self.head

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.logits(module, batch), batch[1] % 2)

    def batches(self, split: Any, seed: int) -> Any:
        return PLAIN.batches(split, seed)

    def score(self, module: nn.Module, split: Any = "test") -> dict[str, float]:
        with torch.inference_mode():
            return {"loss": self.loss(module, PLAIN.examples[split]).item()}


def test_several_tasks_may_have_heads_of_their_own() -> None:
    base, models = fine_tunes(PLAIN, 2)
    tasks = [Headed(str(seed), torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))) for seed in (1, 2)]
    both = adamerging(models, base, tasks, options=AdaMergingOptions(steps=1))
    alone = [adamerging(models, base, [task], options=AdaMergingOptions(steps=1)).entropies[0] for task in tasks]
    assert both.entropies[0] == pytest.approx(sum(alone) / 2)
    network = network_with(PLAIN, ws.merge(models, "task_arithmetic", base=base, parameters={"lambda": 0.3}))
    batch = next(iter(PLAIN.batches("validation", 0)))
    assert alone[0] == pytest.approx(entropy_of(tasks[0].logits(network, batch)).item(), rel=1e-5)
    assert list(both.scores["adamerging"]) == ["1", "2"]


def test_models_of_ties_keep_their_own_elements_of_the_elected_sign() -> None:
    base = {"w": torch.tensor([[0.1, 0.2], [0.3, 0.4]]), "n": torch.tensor(3)}
    moves = [[[1.0, -1.0], [0.5, 0.0]], [[-2.0, -3.0], [0.0, 1.0]]]
    models = [{"w": base["w"] + torch.tensor(move), "n": torch.tensor(3)} for move in moves]
    first, second = elected_models(models, base, 0.75, {})
    assert torch.equal(first["w"], torch.tensor([[0.1, -0.8], [0.8, 0.4]]))
    assert torch.equal(second["w"], torch.tensor([[-1.9, -2.8], [0.3, 1.4]]))
    assert first["n"] == 3


def test_files_and_states_give_the_same_bits(tmp_path: Any) -> None:
    base, models = fine_tunes(TASK, 2)
    paths = saved([base, *models], tmp_path)
    a = adamerging(models, base, [TASK], ties=True, options=AdaMergingOptions(steps=4))
    b = adamerging(paths[1:], paths[0], [TASK], ties=True, options=AdaMergingOptions(steps=4))
    assert equal(a.state, b.state)
    assert a.coefficients == b.coefficients


class Silent:
    """A task that has no batches, or whose loss doesn't use the network."""

    name, objective, example_args, network, score = "t", "loss", (), PLAIN.network, PLAIN.score

    def __init__(self, count: int) -> None:
        self.count = count

    def batches(self, split: str, seed: int) -> Any:
        return [None] * self.count

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        return torch.zeros((), requires_grad=True)


class Regression(nn.Module):
    """A network of one output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs)


def test_what_has_no_predictions_or_several_statistics_is_refused() -> None:
    base, models = fine_tunes(PLAIN, 1)
    with pytest.raises(WeightspaceError, match=r"'t' has no validation batches.*another split"):
        adamerging(models, base, [Silent(0)])
    with pytest.raises(WeightspaceError, match=r"doesn't call the network.*logits\(module, batch\)"):
        adamerging(models, base, [Silent(1)])
    one = ClassificationTask("one", Regression, PLAIN.load)
    state = {name: tensor.detach() for name, tensor in Regression().state_dict().items()}
    with pytest.raises(WeightspaceError, match=r"two classes or more; .*'one' returns a tensor of shape \(60, 1\)"):
        adamerging([state], state, [one])
    with pytest.raises(WeightspaceError, match="list of at least one task"):
        adamerging(models, base, [])
    with pytest.raises(WeightspaceError, match="list of at least one task"):
        adamerging(models, base, PLAIN)  # type: ignore[arg-type]
    with pytest.raises(WeightspaceError, match="Unknown grouping of coefficients 'block'"):
        adamerging(models, base, [PLAIN], "block")  # type: ignore[arg-type]
    with pytest.raises(WeightspaceError, match="start must be a number from 0 to 1; found 2"):
        AdaMergingOptions(start=2)
    with pytest.raises(CheckpointError, match="base and model 1 do not fit"):
        adamerging([{"w": torch.ones(1)}], base, [PLAIN])
    with pytest.raises(WeightspaceError, match=r"Unknown split 'tests'.*'test'"):
        AdaMergingOptions(split="tests")  # type: ignore[arg-type]
    with pytest.raises(WeightspaceError, match="different names; found plain, plain"):
        adamerging(models, base, [PLAIN, PLAIN])
    base, models = fine_tunes(TASK, 1)
    other = ClassificationTask("other", TASK.build, TASK.load)
    with pytest.raises(WeightspaceError, match=r"one task only; found 2 tasks.*--statistics none"):
        adamerging(models, base, [TASK, other])


def test_the_command_writes_the_network_and_prints_scores_and_coefficients(tmp_path: Path) -> None:
    task = ws.load_task("digits-mlp")
    base, *models = (ws.train(task, 0, epochs=epochs) for epochs in (0, 1, 2))
    paths = saved([base, *models], tmp_path)
    names = [str(path) for path in paths]
    common = ["adamerging", *names[1:], "--base", names[0], "--task", "digits-mlp", "--steps", "3"]
    result = CliRunner().invoke(main, [*common, "--per", "model", "-o", str(tmp_path / "out.safetensors")])
    assert result.exit_code == 0, result.output
    assert "validation accuracy" in result.stdout
    assert "entropy: " in result.stdout
    expected = adamerging(paths[1:], paths[0], [task], "model", options=AdaMergingOptions(steps=3))
    assert equal(ws.load_checkpoint(tmp_path / "out.safetensors"), expected.state)
    result = CliRunner().invoke(main, [*common, "--ties", "--json", "-o", str(tmp_path / "plus.safetensors")])
    report = json.loads(result.stdout)
    assert set(report["coefficients"]) == {name for name, tensor in base.items() if tensor.is_floating_point()}
    assert len(report["entropies"]) == 3
    idle = CliRunner().invoke(main, [*common, "--density", "0.3", "-o", str(tmp_path / "out.safetensors")])
    assert idle.exit_code == 2
    assert "without --ties" in idle.stderr
