"""The learned soup: coefficients that go downhill on held-out data, by the gradient that autograd finds."""

from typing import Any

import pytest
import torch
from kitchen import PLAIN, TASK, equal, fine_tunes, saved
from torch.func import functional_call

import weightspace as ws
from weightspace.connectivity import reset_statistics
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.progress import Progress
from weightspace.soups.learned import _Mixture
from weightspace.soups.scoring import Scorer
from weightspace.tasks import ClassificationTask, network_with


@pytest.mark.parametrize("per", ["tensor", "layer", "model"])
def test_the_gradient_is_that_of_the_loss_by_the_coefficients(per: Any) -> None:
    _, states = fine_tunes(PLAIN, 3)
    wide = ClassificationTask("wide", lambda: PLAIN.build().double(), PLAIN.load)
    doubles = [{name: tensor.double() for name, tensor in state.items()} for state in states]
    network = Scorer(wide).network
    mixture = _Mixture(doubles, network, per)
    for number, logits in enumerate(mixture.logits.values()):
        logits.data += torch.randn(3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    mixture.log_scale.data += 0.3
    inputs, labels = PLAIN.examples["validation"]

    free = {group: logits.detach().clone().requires_grad_() for group, logits in mixture.logits.items()}
    scale = mixture.log_scale.detach().clone().requires_grad_()
    mixed = {
        name: sum(alpha * state[name] for alpha, state in zip(free[group].softmax(0), doubles, strict=True))
        for name, group in mixture.groups.items()
    }
    logits = scale.exp() * functional_call(wide.network(), mixed, (inputs.double(),))  # type: ignore[arg-type]
    torch.nn.functional.cross_entropy(logits, labels).backward()

    mixture.mix()
    with mixture.scaled() as scaled:
        torch.nn.functional.cross_entropy(scaled(inputs.double()), labels).backward()
    mixture.pull()
    for group, expected in free.items():
        torch.testing.assert_close(mixture.logits[group].grad, expected.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mixture.log_scale.grad, scale.grad)


@pytest.mark.parametrize("per", ["tensor", "layer", "model"])
def test_coefficients_sum_to_one_and_the_loss_falls(per: Any) -> None:
    _, states = fine_tunes(PLAIN, 4)
    told: list[Progress] = []
    soup = ws.learned_soup(states, PLAIN, per, on_progress=told.append)
    names = {"tensor": ["0.weight", "0.bias", "2.weight", "2.bias"], "layer": ["0", "2"], "model": [""]}[per]
    assert list(soup.coefficients) == names
    assert all(sum(alphas) == pytest.approx(1) and min(alphas) > 0 for alphas in soup.coefficients.values())
    assert soup.losses[-1] < soup.losses[0]
    assert [at.value for at in told] == list(soup.losses)
    uniform = PLAIN.score(network_with(PLAIN, ws.uniform_soup(states)), "validation")["loss"]
    assert PLAIN.score(network_with(PLAIN, soup.state), "validation")["loss"] < uniform
    if per == "model":
        (alphas,) = soup.coefficients.values()
        mean = sum(alpha * state["0.weight"].double() for alpha, state in zip(alphas, states, strict=True))
        torch.testing.assert_close(soup.state["0.weight"].double(), mean, rtol=1e-5, atol=1e-6)


def test_without_an_epoch_it_is_the_uniform_soup() -> None:
    _, states = fine_tunes(TASK, 3)
    soup = ws.learned_soup(states, TASK, epochs=0)
    for name, tensor in ws.uniform_soup(states, TASK).items():
        torch.testing.assert_close(soup.state[name], tensor)
    assert soup.scale == 1


def test_a_bad_ingredient_is_left_out() -> None:
    _, (good, *_) = fine_tunes(PLAIN, 1)
    bad = {name: -tensor if name.startswith("2.") else tensor for name, tensor in good.items()}  # least likely first
    soup = ws.learned_soup([bad, good], PLAIN, "model", epochs=40, learning_rate=0.2)
    assert soup.coefficients[""][1] > 0.9


def test_copies_give_the_copy_and_batchnorm_is_reset() -> None:
    _, (state, *_) = fine_tunes(TASK, 1)
    assert equal(ws.learned_soup([state] * 3, TASK, statistics="none").state, state)
    assert equal(ws.learned_soup([state] * 3, TASK).state, reset_statistics(TASK, state))


def test_files_and_states_give_the_same_bits(tmp_path: Any) -> None:
    _, states = fine_tunes(TASK, 3)
    a, b = ws.learned_soup(states, TASK, epochs=1), ws.learned_soup(saved(states, tmp_path), TASK, epochs=1)
    assert equal(a.state, b.state)
    assert a.coefficients == b.coefficients


class NoHeldOut:
    """A task without validation batches."""

    name, objective, example_args, network, loss, score = "t", "loss", (), PLAIN.network, PLAIN.loss, PLAIN.score

    def batches(self, split: str, seed: int) -> Any:
        return []


def test_invalid_learned_soups_are_refused() -> None:
    _, states = fine_tunes(PLAIN, 2)
    with pytest.raises(WeightspaceError, match=r"nan over 0 batches.*validation split has batches"):
        ws.learned_soup(states, NoHeldOut())
    with pytest.raises(WeightspaceError, match="Unknown grouping of coefficients 'block'"):
        ws.learned_soup(states, PLAIN, "block")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="0 and 1 do not fit"):
        ws.learned_soup([states[0], {"w": torch.ones(1)}], PLAIN)
