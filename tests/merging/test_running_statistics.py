"""Averaged running statistics of BatchNorm are warned of in Python, at the line that asked for the merge."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.connectivity import reset_statistics
from weightspace.errors import WeightspaceWarning
from weightspace.soups import model_stock_soup


def state(seed: int, normalised: bool = True) -> ws.StateDict:
    torch.manual_seed(seed)
    layer: nn.Module = nn.BatchNorm1d(4) if normalised else nn.Identity()
    return nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).state_dict()


AVERAGES: dict[str, Callable[[], ws.StateDict]] = {
    "merge": lambda: ws.merge([state(0), state(1)]),
    "task arithmetic": lambda: ws.merge([state(0), state(1)], "task_arithmetic", base=state(2)),
    "uniform soup": lambda: ws.uniform_soup([state(0), state(1)]),
    "model stock": lambda: model_stock_soup([state(0), state(1)], state(2)),
}
QUIET: dict[str, Callable[[], ws.StateDict]] = {
    "no statistics": lambda: ws.merge([state(0, False), state(1, False)]),
    "one model": lambda: ws.merge([state(0)]),
    "passthrough": lambda: ws.merge([state(0)], "passthrough"),
    "soup of one": lambda: ws.uniform_soup([state(0)]),
    "asked for": lambda: ws.uniform_soup([state(0), state(1)], statistics="none"),
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_averaged_statistics_are_warned_of_where_the_caller_is(average: Callable[[], ws.StateDict]) -> None:
    with pytest.warns(WeightspaceWarning, match="1 BatchNorm layer are averaged") as told:
        average()
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize("average", QUIET.values(), ids=QUIET)
def test_nothing_is_said_where_nothing_is_averaged_unasked(average: Callable[[], ws.StateDict]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average()


def test_the_advice_names_a_function_that_exists() -> None:
    with pytest.warns(WeightspaceWarning, match=f"{reset_statistics.__name__}\\(task, merged\\) recomputes"):
        ws.merge([state(0), state(1)])
