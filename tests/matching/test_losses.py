"""The loss of a task as a function of the weights: the task's own loss, with gradients, and nothing else changed."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError
from weightspace.matching import Losses
from weightspace.tasks import ClassificationTask, Examples, Split


class Words(nn.Module):
    """Embedding and head share one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.words(words).mean(1))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def task(build: Callable[[], nn.Module]) -> ClassificationTask:
    return ClassificationTask("tiny", build, words if build is Words else vectors, batch_size=8)


def vectors() -> Mapping[Split, Examples]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 6, generator=generator)
    return dict.fromkeys(("train", "validation", "test"), Examples(inputs, torch.arange(24) % 5))


def words() -> Mapping[Split, Examples]:
    inputs = torch.randint(5, (24, 3), generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(("train", "validation", "test"), Examples(inputs, torch.arange(24) % 5))


def weights(build: Callable[[], nn.Module], seed: int = 1) -> StateDict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: tensor.detach() for name, tensor in build().state_dict().items()}


@pytest.mark.parametrize("build", [plain, normed, Words])
def test_the_loss_is_that_of_a_module_with_these_weights(build: Callable[[], nn.Module]) -> None:
    found, state = task(build), weights(build)
    module = build()
    module.load_state_dict(state)
    module.eval()
    for part in module.modules():
        part.training = isinstance(part, nn.BatchNorm1d)
    batch = next(iter(found.batches("validation", 0)))
    torch.testing.assert_close(Losses(found)(state, batch), found.loss(module, batch))


@pytest.mark.parametrize("build", [plain, normed, Words])
def test_the_gradient_is_that_of_a_module_with_these_weights(build: Callable[[], nn.Module]) -> None:
    found, state = task(build), weights(build)
    module = build()
    module.load_state_dict(state)
    module.eval()
    for part in module.modules():
        part.training = isinstance(part, nn.BatchNorm1d)
    batch = next(iter(found.batches("validation", 0)))
    found.loss(module, batch).backward()
    leaves = {name: state[name].clone().requires_grad_() for name, _ in module.named_parameters()}
    Losses(found)({**state, **leaves}, batch).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(leaves[name].grad, parameter.grad)


def test_nothing_is_changed_and_nothing_is_drawn() -> None:
    found, state = task(normed), weights(normed)
    before = {name: tensor.clone() for name, tensor in state.items()}
    losses = Losses(found)
    drawn = torch.get_rng_state()
    assert losses.mean(state) == losses.mean(state)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_running_statistics_do_not_count() -> None:
    state = weights(normed)
    other = {**state, "1.running_mean": torch.full((8,), 3.0), "1.running_var": torch.full((8,), 9.0)}
    losses = Losses(task(normed))
    assert losses.mean(other) == losses.mean(state)


def test_the_mean_is_over_all_batches_of_the_split() -> None:
    found, state = task(plain), weights(plain)
    losses = Losses(found)
    each = [float(losses(state, batch)) for batch in found.batches("validation", 0)]
    assert len(each) == 3
    assert losses.mean(state) == pytest.approx(sum(each) / 3)
    module = plain()
    module.load_state_dict(state)
    assert losses.mean(state, "test") == pytest.approx(found.score(module)["loss"])


def test_weights_of_other_precisions_are_taken_as_they_are() -> None:
    state = weights(plain)
    losses = Losses(task(plain))
    doubled = {name: tensor.double() for name, tensor in state.items()}
    assert losses.mean(doubled) == losses.mean(state)


def test_a_state_of_another_network_is_an_error_that_names_it() -> None:
    with pytest.raises(CheckpointError, match=r"the network of tiny and the state do not fit together.*'2\.bias'"):
        Losses(task(plain)).mean({name: tensor for name, tensor in weights(plain).items() if name != "2.bias"})
