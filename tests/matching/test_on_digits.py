"""Every method brings two networks that read digits into one basin."""

from functools import lru_cache, partial
from typing import Any

import pytest

import weightspace as ws
from weightspace.matching import MATCHINGS, match
from weightspace.tasks import ClassificationTask, TrainConfig
from weightspace.tasks.classification import add_noise
from weightspace.zoo.architectures import mlp
from weightspace.zoo.digits import digits_examples

TASK = ClassificationTask(
    name="narrow digits",
    build=partial(mlp, 64, (64, 64), 10),
    load=digits_examples,
    augment=partial(add_noise, std=0.3),
    recipe=TrainConfig(epochs=15),
)


@lru_cache
def trained(seed: int) -> ws.StateDict:
    return ws.train(TASK, seed)


@lru_cache
def spec(symmetry: str) -> Any:
    return ws.derive_spec(TASK.network(), TASK.example_args, symmetry=symmetry)  # type: ignore[call-overload]


def barrier(start: ws.StateDict, end: ws.StateDict) -> float:
    return ws.barrier(ws.loss_curve(TASK, start, end, points=5))


@pytest.mark.parametrize("method", MATCHINGS)
def test_the_barrier_falls(method: str) -> None:
    options: dict[str, Any] = {"steps": 120} if "steps" in MATCHINGS[method].options else {}
    ends = trained(0), trained(1)
    matching = match(spec(MATCHINGS[method].symmetry), *ends, method, task=TASK, **options)
    assert barrier(*matching.apply(*ends)) < 0.3 * barrier(*ends)
