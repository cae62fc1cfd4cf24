"""Deriving a spec holds few copies of the network at a time."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from weightspace.symmetry import derive_spec
from weightspace.symmetry.module_copy import copy_module
from weightspace.zoo.llama import Llama, rotations

TOKENS = torch.arange(4)[None]


def _most_allocated(device: str, **options: Any) -> float:
    """Return the most bytes that a derivation holds at a time, over those of the network's float32 weights."""
    with torch.device(device):
        network = Llama(vocabulary=64, length=8, width=128, depth=6, heads=4, groups=2, hidden=352)
    network.cos, network.sin = rotations(8, 32)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        derive_spec(network, (TOKENS,), **options)
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = torch.tensor([change for _, change in changes]).cumsum(0)
    return float(held.max()) / weights


@pytest.mark.parametrize(
    ("options", "most"),
    [({"verify": False}, 1.1), ({}, 1.6), ({"symmetry": "full", "verify": False}, 1.1), ({"symmetry": "full"}, 1.1)],
)
def test_few_copies_of_the_network_are_held_at_a_time(options: dict[str, Any], most: float) -> None:
    assert 1 <= _most_allocated("cpu", **options) < most


def test_few_weights_of_a_network_on_the_meta_device_are_held_at_a_time() -> None:
    assert 0.2 < _most_allocated("meta", symmetry="full") < 1  # all of them would be 2


def test_shared_parameters_are_those_of_the_module_and_ties_stay() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    copied = copy_module(module, share_parameters=True)
    assert copied[0].weight is copied[2].weight is not module[0].weight
    assert copied[0].weight.data_ptr() == module[0].weight.data_ptr()
    assert copied[1].running_mean.data_ptr() != module[1].running_mean.data_ptr()
