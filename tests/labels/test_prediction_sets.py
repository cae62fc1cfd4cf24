"""Conformal sets hold the truth as often as they say, on seeded data, whatever the classifier, and are small."""

import math
import warnings
from typing import Any

import numpy as np
import pytest

import weightspace as ws
from weightspace.labels import conformal_labels, conformal_nodes

OBSERVED = ["cat", "dog", "car", "bus"]
PARENTS = {
    **{"animal": "thing", "vehicle": "thing", "cat": "animal", "dog": "animal", "wolf": "animal"},
    **{"car": "vehicle", "bus": "vehicle", "stone": "thing"},
}
TREE = ws.LabelMetric.from_tree(PARENTS)
COVERAGES = [0.5, 0.8, 0.9, 0.95]


def drawn(count: int, seed: int, *, sharp: float = 1.0, unseen: float = 0.0) -> tuple[np.ndarray, list[str]]:
    """Return probabilities of a classifier that may be far too sure, and truths that it may never have observed."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, count)
    logits = rng.normal(size=(count, 4))
    logits[np.arange(count), truth] += 1.5
    logits[np.arange(count), truth ^ 1] += 0.8  # the other animal, the other vehicle
    p = np.exp(sharp * logits)
    names = [OBSERVED[i] for i in truth]
    names = [rng.choice(["wolf", "stone"]) if rng.random() < unseen else name for name in names]
    return p / p.sum(1, keepdims=True), [str(name) for name in names]


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("sharp", [0.3, 1.0, 5.0])
def test_sets_hold_the_truth_as_often_as_they_say(coverage: float, sharp: float) -> None:
    held = []
    for seed in range(40):
        p, truth = drawn(300, seed, sharp=sharp)
        sets = conformal_labels(p[:150], truth[:150], observed=OBSERVED, coverage=coverage)
        held += [label in found for found, label in zip(sets.predict(p[150:]), truth[150:], strict=True)]
    assert np.mean(held) > coverage - 0.015
    if coverage > 0.7:  # below, the most probable label alone is right more often, and always in
        assert np.mean(held) < coverage + 0.025


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("unseen", [0.0, 0.2])
def test_nodes_hold_the_truth_as_often_as_they_say(coverage: float, unseen: float) -> None:
    held: list[bool] = []
    for seed in range(40):
        p, truth = drawn(300, seed, unseen=unseen)
        nodes = conformal_nodes(p[:150], truth[:150], metric=TREE, observed=OBSERVED, coverage=coverage)
        held += nodes.holds(nodes.predict(p[150:]), truth[150:]).tolist()
    assert np.mean(held) > coverage - 0.015  # nodes are few, so that they may hold more


def test_sets_are_those_of_the_definition() -> None:
    p, truth = drawn(99, 0)
    sets = conformal_labels(p, truth, observed=OBSERVED, coverage=0.9)
    own = sorted(p[i, OBSERVED.index(label)] for i, label in enumerate(truth))
    assert sets.least == own[9]  # the 90th of 100 places from the top
    new, _ = drawn(50, 1)
    for row, found in zip(new, sets.predict(new), strict=True):
        expected = {OBSERVED[i] for i in range(4) if row[i] >= sets.least} | {OBSERVED[int(row.argmax())]}
        assert set(found) == expected
        assert [row[OBSERVED.index(label)] for label in found] == sorted(row)[::-1][: len(found)]
    unnormalised = sets.predict(7 * new)
    assert unnormalised == sets.predict(new)


def below(label: str) -> set[str]:
    return {label}.union(*(below(child) for child, parent in PARENTS.items() if parent == label))


def chain(label: str) -> list[str]:
    return [label, *(chain(PARENTS[label]) if label in PARENTS else [])]


@pytest.mark.parametrize("unseen", [0.0, 0.3])
def test_nodes_are_those_of_the_definition(unseen: float) -> None:
    p, truth = drawn(79, 3, unseen=unseen)

    def path(row: Any) -> list[tuple[str, float]]:
        up = chain(OBSERVED[int(row.argmax())])
        return [(node, sum(row[OBSERVED.index(one)] for one in below(node) if one in OBSERVED)) for node in up]

    def score(row: Any, label: str) -> float:
        lacking = [mass for node, mass in path(row) if label not in below(node)]
        return max(lacking, default=-1.0)

    nodes = conformal_nodes(p, truth, metric=TREE, observed=OBSERVED, coverage=0.75)
    assert nodes.mass == pytest.approx(sorted(score(*pair) for pair in zip(p, truth, strict=True))[59])
    new, _ = drawn(60, 4)
    for row, found in zip(new, nodes.predict(new), strict=True):
        assert found == next((node for node, mass in path(row) if mass > nodes.mass), "thing")


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.8, 4), (0.5, 1), (0.85, 6)])
def test_few_rows_give_sets_of_everything_with_a_warning(coverage: float, needed: int) -> None:
    assert needed == math.ceil(round(coverage / (1 - coverage), 9))
    p, truth = drawn(needed, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert conformal_labels(p, truth, observed=OBSERVED, coverage=coverage).least > 0
        conformal_nodes(p, truth, metric=TREE, observed=OBSERVED, coverage=coverage)
    p, truth = p[:-1], truth[:-1]
    if not truth:
        return
    message = rf"Coverage {coverage:g} needs at least {needed} calibration rows; found {needed - 1}: .* all labels"
    with pytest.warns(ws.WeightspaceWarning, match=message):
        sets = conformal_labels(p, truth, observed=OBSERVED, coverage=coverage)
    assert sets.predict(p)[0] == [OBSERVED[i] for i in np.argsort(-p[0])]
    with pytest.warns(ws.WeightspaceWarning, match=message):
        nodes = conformal_nodes(p, truth, metric=TREE, observed=OBSERVED, coverage=coverage)
    assert set(nodes.predict(p)) == {"thing"}


def test_a_coverage_next_to_1_needs_rows_without_end() -> None:
    p, truth = drawn(8, 0)
    with pytest.warns(ws.WeightspaceWarning, match="needs at least"):
        conformal_labels(p, truth, observed=OBSERVED, coverage=math.nextafter(1, 0))


def test_sets_are_never_empty_and_smaller_for_less_coverage() -> None:
    p, truth = drawn(400, 0, sharp=8.0)
    sizes = []
    for coverage in (0.1, 0.5, 0.9, 0.99):
        found = conformal_labels(p[:200], truth[:200], observed=OBSERVED, coverage=coverage).predict(p[200:])
        assert min(map(len, found)) >= 1
        sizes.append(np.mean([len(one) for one in found]))
    assert sizes == sorted(sizes)
    depth = {"thing": 0, "animal": 1, "vehicle": 1} | dict.fromkeys(OBSERVED, 2)
    depths = []
    for coverage in (0.5, 0.8, 0.95):
        nodes = conformal_nodes(p[:200], truth[:200], metric=TREE, observed=OBSERVED, coverage=coverage)
        depths.append(np.mean([depth[node] for node in nodes.predict(p[200:])]))
    assert depths == sorted(depths)[::-1]


def test_invalid_prediction_sets_are_refused() -> None:
    p, truth = drawn(20, 0)
    for call, message in (
        (lambda: conformal_labels(p, truth[:5], observed=OBSERVED), "20 rows of probabilities and 5 true"),
        (lambda: conformal_labels(p, truth, observed=OBSERVED, coverage=1), "between 0 and 1; found 1"),
        (lambda: conformal_labels(p, ["wolf"] * 20, observed=OBSERVED), "'wolf' was not observed.*conformal_nodes"),
        (lambda: conformal_labels(p, truth, observed=OBSERVED[:3]), "3 classes were observed"),
        (lambda: conformal_nodes(p, truth, metric=TREE, observed=OBSERVED, coverage=0), "found 0"),
        (lambda: conformal_nodes(p, ["cow"] * 20, metric=TREE, observed=OBSERVED), "Unknown label 'cow'"),
        (
            lambda: conformal_nodes(p, truth, metric=ws.LabelMetric.discrete(OBSERVED), observed=OBSERVED),
            "needs a rooted tree",
        ),
        (lambda: conformal_nodes(p, truth, metric=TREE, observed=["cat"] * 4), "twice among the observed"),
    ):
        with pytest.raises(ws.WeightspaceError, match=message):
            call()
