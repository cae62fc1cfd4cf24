"""Results print as one line, whatever they hold."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.connectivity import BarrierMatrix, Plane
from weightspace.labels import LabelSets, NodeSets, TemperatureFit, conformal_nodes
from weightspace.networks import Network
from weightspace.spectra import SpectralDistances, spectral_distances


def spec() -> ws.PermutationSpec:
    return ws.derive_spec(nn.Sequential(*[nn.Linear(30, 30), nn.ReLU()] * 1, nn.Linear(30, 3)), (torch.ones(2, 30),))


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (30, 30), "0.bias": (30,), "2.weight": (3, 30), "2.bias": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def row(count: int) -> tuple[float, ...]:
    return tuple(position / count for position in range(count))


def node_sets() -> NodeSets:
    names = [f"label {number}" for number in range(500)]
    metric = ws.LabelMetric.from_tree(dict.fromkeys(names, "root"))
    probabilities = torch.full((20, 500), 1 / 500)
    return conformal_nodes(probabilities, names[:20], metric=metric, observed=names, coverage=0.8)


RESULTS: dict[str, Callable[[], Any]] = {
    "curve": lambda: ws.Curve(row(25), row(25), row(25), task="digits-mlp"),
    "short curve": lambda: ws.Curve((0.0, 1.0), (0.1, float("nan"))),
    "matrix": lambda: BarrierMatrix(tuple("abcdefgh"), (row(8),) * 8, row(8)),
    "plane": lambda: Plane(tuple("abc"), ((0, 0),) * 3, row(3), row(25), row(25), (row(25),) * 25),
    "spec": spec,
    "permutation": lambda: ws.Permutation.random(spec(), seed=0),
    "matching": lambda: ws.weight_matching(spec(), state(0), state(1)),
    "spectrum": lambda: ws.spectrum(state(0)),
    "layer": lambda: ws.spectrum(state(0)).layers["0.weight"],
    "alignment": lambda: ws.singular_alignment(state(0), state(1)),
    "distances": lambda: spectral_distances(ws.spectrum(state(0)), ws.spectrum(state(1))),
    "network": lambda: Network(nn.Sequential(*[nn.Linear(3, 3)] * 50), (torch.ones(100, 3),)),
    "metric": lambda: ws.LabelMetric.discrete([f"label {number}" for number in range(1000)]),
    "temperature": lambda: TemperatureFit(1.5, "distance", 0.4, 0.3, 0.5, False, ((0.05, 0.4),) * 41),
    "label sets": lambda: LabelSets(tuple(f"label {number}" for number in range(1000)), 0.9, 0.1, 200),
    "node sets": node_sets,
    "names": lambda: ws.MergeReport(
        "x" * 1000, "linear", ("a\nb",) * 1000, 3, 0, 1, 1, 1, 0.123456789, ("w" * 300,) * 9
    ),
}


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_is_one_short_line_that_begins_with_its_class(result: str) -> None:
    found = RESULTS[result]()
    text = repr(found)
    assert text.startswith(type(found).__name__)
    assert "\n" not in text
    assert len(text) < 500
    assert text.isprintable()


def test_numbers_are_shown_by_their_count_and_range() -> None:
    curve = ws.Curve(row(25), row(25), task="digits-mlp")
    expected = "loss=<25 from 0 to 0.96>, accuracy=None, split='test', statistics='none', task='digits-mlp')"
    assert repr(curve).endswith(expected)
    assert SpectralDistances.__repr__ is not object.__repr__
