"""Soups of networks with weight norm, spectral norm and BatchNorm."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from kitchen import CLASSES, PLAIN, equal, saved
from parametrized_networks import BOTH, SPECTRAL_NORMS, WEIGHT_NORMS, fine_tunes, largest_singular_value, weight_of
from torch import nn
from torch.func import functional_call

import weightspace as ws
from weightspace.arithmetic.mean import mean
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.soups.flatness import angle, flatness
from weightspace.soups.learned import _Mixture
from weightspace.soups.running_mean import RunningMean
from weightspace.tasks import ClassificationTask

old_weight_norm, new_weight_norm = nn.utils.weight_norm, nn.utils.parametrizations.weight_norm
old_spectral_norm, new_spectral_norm = nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm


def network() -> nn.Module:
    return nn.Sequential(
        *(new_weight_norm(nn.Linear(6, 9)), nn.ReLU(), new_spectral_norm(nn.Linear(9, 9)), nn.ReLU()),
        *(old_spectral_norm(nn.Linear(9, 9)), nn.ReLU(), new_weight_norm(nn.Linear(9, CLASSES), dim=None)),
    )


TASK = ClassificationTask("parametrized", network, PLAIN.load)
SPECTRAL = ("2", "4")


def ingredients(count: int) -> list[StateDict]:
    """Return fine-tunes of one network, their singular vectors in order."""
    states = []
    for seed in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = network()
            torch.manual_seed(seed + 1)
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter += 0.5 * torch.randn_like(parameter) * parameter.abs().mean()
                    if name.endswith("original1"):
                        parameter *= 1 + seed
                for _ in range(200):
                    module.train()(torch.randn(2, 6))
        states.append({name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
    return states


def spectral_norms(state: StateDict) -> list[float]:
    module = network().eval()
    module.load_state_dict(state)
    with torch.no_grad():
        module(torch.ones(1, 6))
        return [float(torch.linalg.matrix_norm(module.get_submodule(name).weight, 2)) for name in SPECTRAL]  # type: ignore


ONE = pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize("kind", [*WEIGHT_NORMS, *SPECTRAL_NORMS])
def test_the_uniform_soup_is_the_mean_of_the_weights(kind: str) -> None:
    states = fine_tunes({**WEIGHT_NORMS, **SPECTRAL_NORMS}[kind], 3)
    result = ws.uniform_soup(states)
    for name, tensor in mean(states).items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-4, atol=1e-6)
    assert equal(ws.uniform_soup(states[:1] * 3), states[0])


def test_spectral_norm_on_weight_norm_makes_soups() -> None:
    states = fine_tunes(BOTH, 3)
    assert largest_singular_value(BOTH, weight_of(BOTH, ws.uniform_soup(states))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_soups_of_files_are_those_of_states(suffix: str, tmp_path: Path) -> None:
    states = ingredients(3)
    assert equal(ws.uniform_soup(saved(states, tmp_path, suffix)), ws.uniform_soup(states))
    assert spectral_norms(ws.uniform_soup(states)) == ONE


def test_the_mean_with_one_network_more_is_the_mean_after_taking_it_in() -> None:
    states = ingredients(3)
    running = RunningMean()
    for number, state in enumerate(states):
        joined = dict(running.joined(state, str(number)))
        running.add(state, str(number))
    result = running.state()
    assert joined.keys() == result.keys()
    for name, tensor in result.items():
        torch.testing.assert_close(joined[name], tensor)
    assert spectral_norms(joined) == ONE


def test_of_the_first_network_nothing_is_held_but_parametrized_weights() -> None:
    state = ingredients(1)[0]
    plain, direction = (weakref.ref(state[name]) for name in ("4.bias", "0.parametrizations.weight.original1"))
    running = RunningMean()
    running.add(state, "first")
    del state
    assert plain() is None
    assert direction() is not None


def test_pairs_that_stop_being_tied_are_untied_in_the_soup() -> None:
    states = []
    for seed, state in enumerate(fine_tunes(WEIGHT_NORMS["linear, old"], 3)):
        both = {f"a.{name}": tensor for name, tensor in state.items()}
        other = state if seed != 1 else {name: tensor * 2 for name, tensor in state.items()}
        states.append({**both, **{f"b.{name}": tensor for name, tensor in other.items()}})
    result = ws.uniform_soup(states)
    assert result["a.weight_v"].data_ptr() != result["b.weight_v"].data_ptr()
    torch.testing.assert_close(result["b.weight_v"], mean(states)["b.weight_v"])
    tied = ws.uniform_soup(states[::2])
    assert tied["a.weight_v"].data_ptr() == tied["b.weight_v"].data_ptr()
    assert tied["a.weight_g"].data_ptr() == tied["b.weight_g"].data_ptr()


def test_counters_of_soups_are_the_largest_in_any_dtype() -> None:
    for dtypes in (
        (torch.int32, torch.int64, torch.int32),
        (torch.float32,) * 3,
        (torch.float32, torch.int64, torch.int8),
    ):
        counts = zip((3, 90, 41), dtypes, strict=True)
        states = [{"num_updates": torch.tensor(count).to(dtype), "w": torch.ones(2)} for count, dtype in counts]
        assert int(ws.uniform_soup(states)["num_updates"]) == 90


def test_the_greedy_soup_scores_and_returns_networks_of_spectral_norm_one() -> None:
    states = ingredients(4)
    seen: list[list[float]] = []

    def score(state: StateDict) -> float:
        seen.append(spectral_norms(state))
        return float(len(seen))  # so that each is taken

    soup = ws.greedy_soup(states, score)
    assert len(soup.ingredients) == 4
    assert len(seen) == 7
    assert all(norms == ONE for norms in seen)
    assert spectral_norms(soup.state) == ONE
    assert spectral_norms(ws.greedy_soup(states, TASK, cache=False).state) == ONE


@pytest.mark.parametrize("per", ["tensor", "layer", "model"])
def test_the_gradient_of_a_learned_soup_is_that_of_the_loss_by_the_coefficients(per: Any) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, CLASSES)).double()

    def normed() -> nn.Module:
        module = plain()
        new_weight_norm(module[0])  # type: ignore[index]
        old_weight_norm(module[2], dim=1)  # type: ignore[index]
        return module

    states = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states.append({name: tensor.detach().clone() for name, tensor in normed().state_dict().items()})
        for name in ("0.parametrizations.weight.original0", "2.weight_g"):
            states[-1][name] *= 1 + seed
    mixture = _Mixture(states, normed(), per)
    for number, logits in enumerate(mixture.logits.values()):
        logits.data += torch.randn(3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    inputs, labels = PLAIN.examples["validation"]

    free = {group: logits.detach().clone().requires_grad_() for group, logits in mixture.logits.items()}
    directions = {"0.weight": "0.parametrizations.weight.original1", "2.weight": "2.weight_v"}
    mixed = {}
    for name in plain().state_dict():
        inside = directions.get(name, name)
        alpha = free[mixture.groups[inside]].softmax(0)
        mixed[name] = sum(
            share * mixture.coordinates.of(state, inside) for share, state in zip(alpha, states, strict=True)
        )
    loss = nn.functional.cross_entropy(functional_call(plain(), mixed, (inputs.double(),)), labels)
    expected = torch.autograd.grad(loss, list(free.values()))

    mixture.mix()
    nn.functional.cross_entropy(mixture.network(inputs.double()), labels).backward()
    mixture.pull()
    for logits, gradient in zip(mixture.logits.values(), expected, strict=True):
        torch.testing.assert_close(logits.grad, gradient)


def test_the_learned_soup_has_spectral_norm_one_and_is_the_mixture_of_the_weights() -> None:
    states = ingredients(3)
    result = ws.learned_soup(states, TASK, epochs=2)
    assert spectral_norms(result.state) == ONE
    assert not {name for name in result.coefficients if name.endswith(("original0", "_u", "_v"))}
    assert equal(ws.learned_soup([states[0]] * 2, TASK, epochs=1).state, states[0])


def test_wise_ft_stays_right_beyond_its_ends() -> None:
    a, b = ingredients(2)
    result = ws.wise_ft(a, b, TASK, positions=(1.5,), cache=False)
    assert spectral_norms(result.state) == ONE
    assert equal(ws.wise_ft(a, b, TASK, positions=(1.0,), cache=False).state, b)


@pytest.mark.parametrize("statistics", ["auto", "none"])
def test_wise_ft_beyond_its_ends_has_no_negative_variance(statistics: Any) -> None:
    task = ClassificationTask(
        "normed", lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, CLASSES)), PLAIN.load
    )
    a, b = ({name: tensor.clone() for name, tensor in task.network().state_dict().items()} for _ in range(2))
    b["1.running_var"] *= 0.1
    result = ws.wise_ft(a, b, task, positions=(1.9,), cache=False, statistics=statistics)
    assert bool((result.state["1.running_var"] > 0).all())
    assert result.scores["validation"][0]["loss"] < float("inf")


def test_flatness_is_measured_on_networks_of_spectral_norm_one() -> None:
    seen = []

    class Watching(ClassificationTask):
        def score(self, module: Any, split: Any = "test") -> Any:
            with torch.no_grad():
                module(torch.ones(1, 6))
                seen.append(
                    [float(torch.linalg.matrix_norm(module.get_submodule(name).weight, 2)) for name in SPECTRAL]
                )
            return super().score(module, split)

    state, other = ingredients(2)
    flatness(state, [other], Watching("parametrized", network, PLAIN.load), directions=2, radii=(0, 0.5), points=3)
    assert len(seen) == 7
    assert all(norms == ONE for norms in seen)


def test_the_angle_is_one_between_weights() -> None:
    a, b, c = fine_tunes(WEIGHT_NORMS["linear, old"], 3)
    longer = {**b, "weight_v": b["weight_v"] * 5}
    assert angle(a, longer, c) == pytest.approx(angle(a, b, c), abs=1e-3)


def test_a_half_tied_pair_makes_no_soup() -> None:
    (state,) = fine_tunes(WEIGHT_NORMS["linear, old"], 1)
    both = {f"{layer}.{name}": tensor for layer in "ab" for name, tensor in state.items()}
    both["b.weight_g"] = both["b.weight_g"] * 2
    with pytest.raises(WeightspaceError, match=r"'b\.weight_v' shares its memory"):
        ws.uniform_soup([both, dict(both)])
