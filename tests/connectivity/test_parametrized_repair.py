"""REPAIR of parametrized networks is that of the plain ones, or refused; curves name the statistics that were used."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import CLASSES, IMAGE, task_of, weights
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from weightspace.arithmetic.effective import effective_weights
from weightspace.checkpoints import StateDict
from weightspace.connectivity import barrier_matrix, loss_curve, repair
from weightspace.connectivity.activation_statistics import unit_layers
from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.merging import interpolate

old, new = nn.utils.weight_norm, parametrizations.weight_norm
Wrap = Callable[[Any], nn.Module]


def dense(wrap: Wrap) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(6, 9)), nn.ReLU(), wrap(nn.Linear(9, 7)), nn.ReLU(), nn.Linear(7, CLASSES))


def image(wrap: Wrap) -> nn.Module:
    return nn.Sequential(
        *(wrap(nn.Conv2d(3, 4, 2)), nn.ReLU(), wrap(nn.ConvTranspose2d(4, 6, 2, groups=2)), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
    )


def plain(layer: Any) -> nn.Module:
    return layer


WRAPS: dict[str, Wrap] = {
    "new": new,
    "old": old,
    "new, one norm": partial(new, dim=None),
    "old, one norm": partial(old, dim=None),
    "new, along inputs": partial(new, dim=1),
    "old, along inputs": partial(old, dim=1),
}
BUILDS = {"dense": (dense, (6,)), "image": (image, IMAGE)}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("passes", [1, 3])
def test_repair_under_weight_norm_is_that_of_the_plain_networks(wrap: str, build: str, passes: int) -> None:
    make, shape = BUILDS[build]
    task, expected_task = task_of(lambda: make(WRAPS[wrap]), shape), task_of(lambda: make(plain), shape)
    a, b = (weights(task, seed) for seed in (1, 2))
    found = repair(task, a, b, 0.4, passes=passes)
    expected = repair(expected_task, effective_weights(a), effective_weights(b), 0.4, passes=passes)
    assert found.keys() == a.keys()
    effective = effective_weights(found)
    for name, tensor in expected.items():
        torch.testing.assert_close(effective[name], tensor, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(expected["0.weight"], effective_weights(interpolate(a, b, 0.4))["0.weight"])
    curves = (
        loss_curve(one, *states, 3, statistics="repair").loss
        for one, states in ((task, (a, b)), (expected_task, map(effective_weights, (a, b))))
    )
    assert next(curves) == pytest.approx(next(curves), rel=1e-9)


def pruned(layer: Any) -> nn.Module:
    layer = prune.ln_structured(layer, "weight", 0.5, n=2, dim=1)
    layer.weight_mask.copy_(torch.arange(layer.weight_mask.numel()).view(layer.weight_mask.shape) % 2)
    return layer


def test_repair_of_pruned_networks_is_that_of_the_plain_ones() -> None:
    task, expected_task = task_of(lambda: dense(pruned)), task_of(lambda: dense(plain))
    a, b = (weights(task, seed) for seed in (1, 2))
    effective = effective_weights(repair(task, a, b, 0.5))
    expected = repair(expected_task, effective_weights(a), effective_weights(b), 0.5)
    for name, tensor in expected.items():
        torch.testing.assert_close(effective[name], tensor, rtol=1e-9, atol=1e-12)


class Doubling(nn.Module):
    def forward(self, weight: Any) -> Any:
        return 2 * weight


def registered(part: nn.Module, name: str = "weight") -> Wrap:
    def wrap(layer: Any) -> nn.Module:
        return parametrize.register_parametrization(layer, name, part)

    return wrap


REFUSED: dict[str, tuple[Wrap, str]] = {
    "spectral norm": (parametrizations.spectral_norm, "its weight is under SpectralNorm"),
    "old spectral norm": (nn.utils.spectral_norm, "its weight is computed from other tensors"),
    "orthogonal": (partial(parametrizations.orthogonal, use_trivialization=False), "its weight is under Orthogonal"),
    "both norms": (lambda layer: parametrizations.spectral_norm(new(layer)), "its weight is under WeightNorm and Spec"),
    "one's own": (registered(Doubling()), "its weight is under Doubling"),
    "one's own bias": (registered(Doubling(), "bias"), "its bias is computed"),
    "old weight norm of the bias": (lambda layer: old(layer, "bias"), "its bias is computed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_parametrizations_that_undo_repair_are_refused(kind: str) -> None:
    wrap, message = REFUSED[kind]
    task = task_of(lambda: dense(wrap))
    a, b = (weights(task, seed) for seed in (1, 2))
    for call in (
        lambda: repair(task, a, b, 0.5),
        lambda: loss_curve(task, a, b, 3, statistics="repair"),
        lambda: barrier_matrix(task, [a, b], points=3, statistics="repair"),
    ):
        with pytest.raises(WeightspaceError, match=rf"REPAIR cannot correct the units of '0': {message}"):
            call()
    assert loss_curve(task, a, b, 3, statistics="auto").statistics == "none"


def test_before_batchnorm_nothing_has_to_be_set_and_nothing_is_refused() -> None:
    task = task_of(
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(6, 9)), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES)
        )
    )
    a, b = (weights(task, seed) for seed in (1, 2))
    assert loss_curve(task, a, b, 3, statistics="repair").statistics == "repair"


def only_output() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES))


def without_gain() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, CLASSES))


@pytest.mark.parametrize(("build", "done"), [(only_output, "none"), (without_gain, "reset")])
def test_a_repair_that_sets_no_layer_is_not_labelled_repair(build: Any, done: str) -> None:
    task = task_of(build)
    a, b = (weights(task, seed) for seed in (1, 2))
    with pytest.warns(WeightspaceWarning, match=f"no layer of hidden units.*using '{done}' instead"):
        curve = loss_curve(task, a, b, 3, statistics="repair")
    assert curve.statistics == done
    assert curve.loss == loss_curve(task, a, b, 3, statistics=done).loss
    with pytest.warns(WeightspaceWarning, match="no layer of hidden units"):
        assert barrier_matrix(task, [a, b], points=3, statistics="repair").statistics == done
    with pytest.warns(WeightspaceWarning, match="no layer of hidden units"):
        found = repair(task, a, b, 0.5)
    expected = repair(task, a, b, 0.5, method="reset")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            loss_curve(task_of(lambda: dense(plain)), *_plain_endpoints(), 3, statistics="repair").statistics
            == "repair"
        )


def _plain_endpoints() -> list[StateDict]:
    return [weights(task_of(lambda: dense(plain)), seed) for seed in (1, 2)]


class Twice(nn.Module):
    """One layer under two names, which runs once."""

    def __init__(self, wrap: Wrap = plain) -> None:
        super().__init__()
        self.first = wrap(nn.Linear(6, 7))
        self.second = self.first
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.second(x).relu())


@pytest.mark.parametrize("wrap", [plain, old, new])
def test_a_module_under_two_names_is_set_once(wrap: Wrap) -> None:
    task = task_of(lambda: Twice(wrap))
    network = task.network()
    batch = next(iter(task.batches("train", 0)))
    assert list(unit_layers(network, lambda: task.loss(network, batch))) == ["first"]
    a, b = (weights(task, seed) for seed in (1, 2))
    found = effective_weights(repair(task, a, b, 0.5))
    assert torch.equal(found["first.weight"], found["second.weight"])
    plain_task = task_of(lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, CLASSES)))
    ends = [
        {
            f"{index}.{part}": effective_weights(state)[f"{name}.{part}"]
            for index, name in ((0, "first"), (2, "head"))
            for part in ("weight", "bias")
        }
        for state in (a, b)
    ]
    expected = repair(plain_task, *ends, 0.5)
    torch.testing.assert_close(found["first.weight"], expected["0.weight"], rtol=1e-9, atol=1e-12)
