"""Matchings that a loss drives: never worse than where they began, and copies of the best that nothing changes."""

import itertools
from typing import Any

import pytest
import tiny_tasks
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.matching import Losses, Matching, sinkhorn_rebasin, straight_through, weight_matching
from weightspace.matching.loss_driven import Best, EndpointPair
from weightspace.matching.soft_permutations import Scoring
from weightspace.matching.straight_through import Projecting
from weightspace.progress import Progress
from weightspace.symmetry import Permutation
from weightspace.tasks import ClassificationTask


def ends(kind: str) -> EndpointPair:
    return EndpointPair(tiny_tasks.spec(kind), tiny_tasks.trained(kind, 0), tiny_tasks.trained(kind, 1))


def midpoint_loss(kind: str, permutation: Permutation) -> float:
    both = ends(kind)
    return Losses(tiny_tasks.task(kind)).mean(both.between(both.permuted(permutation.indices), 0.5))


def run(kind: str, projection: Any = "weight-matching", **options: Any) -> Matching:
    both = ends(kind)
    return straight_through(
        both.spec, both.target, both.source, task=tiny_tasks.task(kind), projection=projection, **options
    )


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet", "attention"])
@pytest.mark.parametrize("projection", ["weight-matching", "sinkhorn"])
def test_the_objective_is_the_loss_of_the_permutation_and_never_worse_than_the_start(
    kind: str, projection: str
) -> None:
    matching = run(kind, projection, steps=20, every=5)
    assert len(matching.objective) == 2 + 4
    assert all(after <= before for before, after in itertools.pairwise(matching.objective))
    assert matching.objective[0] == midpoint_loss(kind, Permutation.identity(tiny_tasks.spec(kind)))
    assert matching.objective[-1] == midpoint_loss(kind, matching.permutation)


def test_without_steps_the_projected_estimator_returns_weight_matching() -> None:
    both = ends("mlp")
    begin = weight_matching(both.spec, both.target, both.source)
    assert run("mlp", steps=0).objective[-1] <= midpoint_loss("mlp", begin.permutation)
    assert run("mlp", steps=0).permutation == begin.permutation


def test_the_projected_estimator_improves_on_weight_matching() -> None:
    """Which of these small networks leave room for improvement depends on the machine that trained them."""
    left = []
    for kind in ("mlp", "cnn", "resnet", "attention"):
        both = ends(kind)
        begin = weight_matching(both.spec, both.target, both.source)
        found = run(kind, steps=60, learning_rate=1e-2)
        left.append(found.objective[-1] / midpoint_loss(kind, begin.permutation))
    assert max(left) <= 1
    assert min(left) < 0.9


def test_without_steps_there_is_the_better_of_the_source_and_the_start() -> None:
    both = ends("mlp")
    matching = run("mlp", "sinkhorn", steps=0, start="identity")
    assert matching.permutation == Permutation.identity(both.spec)
    assert not matching.converged


def test_the_free_weights_get_the_gradient_at_the_midpoint() -> None:
    both, task = ends("mlp"), tiny_tasks.task("mlp")
    losses = Losses(task)
    start = weight_matching(both.spec, both.target, both.source).permutation
    way = Projecting(both, losses, start=start.indices, sweeps=2, generator=torch.Generator().manual_seed(0))
    batch = next(iter(task.batches("validation", 0)))
    way.loss(batch).backward()
    middle = {
        name: tensor.clone().requires_grad_() for name, tensor in both.between(both.permuted(way.current), 0.5).items()
    }
    losses(middle, batch).backward()
    for name, free in way.free.items():
        torch.testing.assert_close(free.grad, middle[name].grad / 2)  # type: ignore[operator]


def test_the_scores_are_seen_hard_and_changed_softly() -> None:
    both = ends("mlp")
    seen: list[dict[str, torch.Tensor]] = []

    def aim(moved: dict[str, torch.Tensor], _: Any) -> torch.Tensor:
        seen.append(moved)
        return both.distance(moved)

    for hard in (True, False):
        generator = torch.Generator().manual_seed(0)
        way = Scoring(both, aim, start="noise", temperature=1.0, hard=hard, generator=generator)
        way.loss(None).backward()
        assert all(float(leaf.grad.abs().sum()) > 0 for leaf in way.leaves if leaf.grad is not None)
        exact = both.permuted(way.indices())
        close = [torch.allclose(seen[-1][name], tensor, atol=1e-5) for name, tensor in exact.items()]
        assert all(close) if hard else not any(close[:4])


def test_the_best_is_a_copy_that_later_steps_do_not_change() -> None:
    current = {"h": torch.tensor([1, 0])}
    best = Best(current, 1.0)
    current["h"].copy_(torch.tensor([0, 1]))
    current["g"] = torch.tensor([0])
    best.offer(current, 2.0)
    assert best.found.keys() == {"h"}
    assert best.found["h"].tolist() == [1, 0]
    assert best.history == [1.0, 1.0]


def test_scoring_may_modify_the_network_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("mlp", "sinkhorn", steps=40, every=10)
    offered: list[dict[str, torch.Tensor]] = []
    plain = Best.offer

    def spoil(self: Best[Any], indices: Any, loss: float) -> None:
        for old in offered:
            for index in old.values():
                index.fill_(-1)
        plain(self, indices, loss)
        offered.append(dict(indices))

    monkeypatch.setattr(Best, "offer", spoil)
    assert run("mlp", "sinkhorn", steps=40, every=10).permutation == expected.permutation


@pytest.mark.parametrize("loss", ["midpoint", "random", "l2"])
@pytest.mark.parametrize("start", ["noise", "identity"])
def test_rebasin_lowers_its_objective(loss: Any, start: Any) -> None:
    both = ends("mlp")
    task = None if loss == "l2" else tiny_tasks.task("mlp")
    found = sinkhorn_rebasin(both.spec, both.target, both.source, task=task, loss=loss, start=start, steps=100)
    assert found.objective[-1] < 0.8 * found.objective[0]
    if loss == "l2":
        assert found.objective[-1] == pytest.approx(float(both.distance(both.permuted(found.permutation.indices))))
        assert found.l2_reduction > 0.9 * weight_matching(both.spec, both.target, both.source).l2_reduction


def test_every_trial_is_reported() -> None:
    facts: list[Progress] = []
    matching = run("mlp", steps=25, every=10, on_progress=facts.append)
    assert [(fact.index, fact.total) for fact in facts] == [(10, 25), (20, 25), (25, 25)]
    assert tuple(fact.details["best"] for fact in facts) == matching.objective[2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": "sinkorn"}, "Did you mean 'sinkhorn'"),
        ({"start": "noise"}, "'weight-matching', which starts at the target"),
        ({"projection": "sinkhorn", "start": "target"}, "expected one of noise, identity"),
        ({"projection": "sinkhorn", "temperature": 0.0}, "temperature must be positive"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"learning_rate": 0.0}, "learning rate must be positive"),
        ({"learning_rate": float("inf")}, "positive and finite; found inf"),
    ],
)
def test_options_that_make_no_sense_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        run("mlp", **options)


class Broken(ClassificationTask):
    """A task whose loss is no number."""

    def loss(self, module: nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(module, batch) * torch.nan


def test_a_loss_that_is_no_number_is_an_error() -> None:
    both, task = ends("mlp"), Broken("broken", tiny_tasks.mlp, tiny_tasks.clouds)
    with pytest.raises(WeightspaceError, match="The loss is nan at step 1"):
        straight_through(both.spec, both.target, both.source, task=task)


def test_a_loss_without_its_task_is_an_error() -> None:
    both = ends("mlp")
    with pytest.raises(WeightspaceError, match="'midpoint' needs a task; only 'l2' works without"):
        sinkhorn_rebasin(both.spec, both.target, both.source)
    with pytest.raises(WeightspaceError, match="expected one of midpoint, random, l2"):
        sinkhorn_rebasin(both.spec, both.target, both.source, loss="l1")  # type: ignore[arg-type]


def test_the_public_names_are_these() -> None:
    assert ws.straight_through is straight_through
    assert ws.sinkhorn_rebasin is sinkhorn_rebasin
