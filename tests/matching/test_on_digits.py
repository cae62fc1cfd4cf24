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
def spec() -> ws.PermutationSpec:
    return ws.derive_spec(TASK.network(), TASK.example_args)


def barrier(end: ws.StateDict) -> float:
    return ws.barrier(ws.loss_curve(TASK, trained(0), end, points=5))


@pytest.mark.parametrize("method", MATCHINGS)
def test_the_barrier_falls(method: str) -> None:
    options: dict[str, Any] = {"steps": 120} if "steps" in MATCHINGS[method].options else {}
    matching = match(spec(), trained(0), trained(1), method, task=TASK, **options)
    assert barrier(ws.permute(spec(), matching.permutation, trained(1))) < 0.3 * barrier(trained(1))
