"""Heads: the same labels as ``predict`` by every route, outside of tracing, compiled and exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from spaces import SPACES, names
from torch import Tensor, nn

import weightspace as ws
from weightspace.errors import WeightspaceError

pytestmark = pytest.mark.usefixtures("by_structure")

TRACED = ["tree", "weighted tree", "path", "graph", "matrix", "points", "discrete", "grid"]


class Model(nn.Module):
    """A classifier that ends in a head."""

    def __init__(self, head: nn.Module, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(7, classes)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(3 * self.linear(x))


def inputs(rows: int = 64) -> Tensor:
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(1))


def observed_of(space: str) -> list[str]:
    labels = SPACES[space].labels
    return [labels[i] for i in np.random.default_rng(2).permutation(len(labels))[: max(2, 2 * len(labels) // 3)]]


def model_of(space: str, **options: object) -> Model:
    observed = observed_of(space)
    return Model(SPACES[space].head(observed=observed, temperature=0.7, **options), len(observed)).eval()  # type: ignore[arg-type]


def assert_agrees(found: Tensor, model: Model, x: Tensor) -> None:
    """Assert that the labels are the model's, or cost the same but for rounding, which other machines do otherwise."""
    expected = model(x)
    costs = model.head.expected_cost(3 * model.linear(x))  # type: ignore[operator]
    torch.testing.assert_close(costs.gather(1, found[:, None]), costs.gather(1, expected[:, None]), rtol=1e-13, atol=0)
    assert (found != expected).sum() <= 0.05 * len(x)


@pytest.mark.parametrize("space", SPACES)
def test_a_head_predicts_what_the_metric_does(space: str) -> None:
    observed = list(SPACES[space].labels)
    logits = torch.randn(5, 4, len(observed), generator=torch.Generator().manual_seed(3))
    head = SPACES[space].head(observed=observed, temperature=0.5)
    p = torch.softmax(logits.double() / 0.5, -1)
    assert head(logits).shape == (5, 4)
    np.testing.assert_array_equal(head(logits).numpy(), SPACES[space].predict(p, observed=observed))
    costs = SPACES[space].expected_cost(p, observed=observed)
    np.testing.assert_allclose(head.expected_cost(logits).numpy(), costs, rtol=1e-12, atol=1e-12)
    least, found = head.topk(logits, min(3, len(observed)))
    assert torch.equal(found[..., 0], head(logits))
    np.testing.assert_allclose(least.numpy(), np.sort(costs, -1)[..., : least.shape[-1]], atol=1e-12)
    assert head.names(found[0, 0])[0] == SPACES[space].labels[int(found[0, 0, 0])]
    assert head.names(found[0, 0, 0]) == SPACES[space].labels[int(found[0, 0, 0])]


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("space", TRACED)
def test_the_compiled_head_agrees(space: str, exponent: float) -> None:
    torch._dynamo.reset()
    model = model_of(space, exponent=exponent)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for rows in (64, 33):
        assert_agrees(compiled(inputs(rows)), model, inputs(rows))


@pytest.mark.parametrize(("space", "exponent"), [("graph", 1), ("tree", 3)])
def test_the_compiled_head_agrees_for_other_exponents_and_restricted_outputs(space: str, exponent: float) -> None:
    torch._dynamo.reset()
    outputs = list(SPACES[space].labels)[5:17]
    model = model_of(space, exponent=exponent, outputs=outputs)
    assert torch.equal(torch.compile(model, fullgraph=True)(inputs()), model(inputs()))
    costs = torch.compile(model.head.expected_cost, fullgraph=True)  # type: ignore[operator]
    logits = model.linear(inputs())
    torch.testing.assert_close(costs(logits), model.head.expected_cost(logits))  # type: ignore[operator]


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("space", TRACED)
def test_the_exported_head_agrees_for_any_batch(space: str, exponent: float, tmp_path: Path) -> None:
    model = model_of(space, exponent=exponent)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(model, (inputs(),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (64, 1, 129):
        assert_agrees(loaded(inputs(rows)), model, inputs(rows))
    assert_agrees(program.run_decompositions().module()(inputs()), model, inputs())


def test_the_state_is_the_temperature_and_casts_leave_the_tables_alone() -> None:
    model = model_of("graph")
    head = model.head
    assert list(head.state_dict()) == ["temperature"]
    logits = model.linear(inputs()).detach()
    before = head(logits)
    head.half().to(torch.bfloat16).float()
    assert torch.equal(head(logits), before)
    assert head.temperature.dtype == torch.float64
    other = SPACES["graph"].head(observed=observed_of("graph"))
    other.load_state_dict(head.state_dict())
    assert float(other.temperature) == 0.7


def test_a_head_moves_without_its_metric() -> None:
    for space in TRACED:
        head = SPACES[space].head(observed=observed_of(space))
        logits = torch.randn(3, head.classes, generator=torch.Generator().manual_seed(0))
        p, before = torch.softmax(logits.double(), -1), head(logits)
        assert all(a.data_ptr() == b.data_ptr() for a, b in zip(
            head.rule.buffers(), SPACES[space].decision(observed=observed_of(space)).rule.buffers(), strict=True
        ))  # fmt: skip
        head.to("meta")
        assert SPACES[space].predict(p, observed=observed_of(space)).tolist() == before.tolist()
        assert torch.equal(SPACES[space].head(observed=observed_of(space))(logits), before)


def test_expected_costs_can_be_trained_on() -> None:
    for space in TRACED:
        model = model_of(space)
        costs = model.head.expected_cost(model.linear(inputs()))  # type: ignore[operator]
        costs.mean().backward()
        assert model.linear.weight.grad is not None
        assert torch.isfinite(model.linear.weight.grad).all()


MISTAKES = {
    "another number of logits": (torch.zeros(2, 5), "classes were observed"),
    "NaN": (torch.full((2, 40), float("nan")), "Row 0"),
    "plus infinity": (torch.tensor([[0.0] * 40, [float("inf")] * 40]), "Row 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_logits_that_are_none_are_errors(mistake: str) -> None:
    logits, message = MISTAKES[mistake]
    head = SPACES["tree"].head(observed=names(40))
    with pytest.raises(WeightspaceError, match=message):
        head(logits)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(WeightspaceError, match="positive"):
            SPACES["tree"].head(observed=names(40), temperature=temperature)
    with pytest.raises(WeightspaceError, match="k=41"):
        head.topk(torch.zeros(1, 40), 41)
    for positions, found in (
        (torch.zeros(1, 40), "torch.float32"),
        ([True], "torch.bool"),
        ([-1], "others"),
        ([99], "o"),
    ):
        with pytest.raises(WeightspaceError, match=f"integers from 0 to 39 .* found {found}"):
            head.names(positions)
    assert head.names(np.asarray([[3, 0]])) == [["class 3", "class 0"]]


def test_scikit_learn_predicts_labels_that_it_never_saw() -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import cross_val_score

    rng = np.random.default_rng(0)
    steps = rng.integers(0, 5, 400)
    x = (steps + rng.normal(0, 0.8, 400))[:, None]
    metric = ws.LabelMetric.from_tree(edges=[(f"{i}", f"{i + 1}") for i in range(4)])
    y = np.asarray([f"{i}" for i in steps])
    known = steps != 2
    fitted = LogisticRegression().fit(x[known], y[known])
    predicted = ws.FrechetClassifier(fitted, metric).predict(x)
    assert set(predicted) == {"0", "1", "2", "3", "4"}
    distance = np.abs(predicted.astype(int) - steps) ** 2
    assert distance.mean() < 0.9 * (np.abs(fitted.predict(x).astype(int) - steps) ** 2).mean()
    model = ws.FrechetClassifier(LogisticRegression(), metric).fit(x, y)
    np.testing.assert_array_equal(model.outputs_, metric.labels)
    np.testing.assert_array_equal(model.classes_, model.estimator_.classes_)
    assert model.predict_proba(x).shape == (400, len(model.classes_))
    assert model.expected_cost(x).shape == (400, 5)
    assert (
        cross_val_score(ws.FrechetClassifier(LogisticRegression(), metric), x, y, cv=3, scoring="accuracy").mean() > 0.3
    )
    with pytest.raises(WeightspaceError, match="labels in y"):
        ws.FrechetClassifier(LogisticRegression(), metric).fit(x, np.asarray(["a", "b"] * 200))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        ws.FrechetClassifier(LogisticRegression(), metric).predict(x)


def test_classes_keep_their_types_beside_others() -> None:
    from sklearn.dummy import DummyClassifier

    y = np.asarray([0, 1, 1, 0, 1])
    tree = ws.LabelMetric.from_tree(edges=[("root", 0), ("root", 1)])
    model = ws.FrechetClassifier(DummyClassifier(), tree, outputs="observed").fit(y[:, None], y)
    assert set(model.predict(y[:, None])) == {1}
    assert model.score(y[:, None], y) == -1.6  # two of five are 2 away
    grid = ws.LabelMetric.from_grid([2, 2])
    fitted = DummyClassifier().fit(y[:, None], y)
    fitted.classes_ = [(0, 0), (1, 1)]
    assert ws.FrechetClassifier(fitted, grid).predict(y[:, None]).shape == (5,)


class Tower(nn.Module):
    """What open_clip's models have, tiny: texts and images as bags of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, 128).sum(1).float()

    def encode_image(self, images: Tensor) -> Tensor:
        return images


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([[ord(letter) for letter in text.ljust(24)] for text in texts])


def test_zero_shot_over_a_metric_of_the_text_tower() -> None:
    from weightspace.labels import ZeroShotClassifier

    tower, classes = Tower(), ["cat", "cats", "dog", "dogs"]
    metric = ws.LabelMetric.from_open_clip(tower, tokenizer, classes, templates=["a {}", "the {}"])
    assert metric.labels == tuple(classes)
    assert metric.distances(["cat"], ["cats"]) < metric.distances(["cat"], ["dog"])
    model = ZeroShotClassifier(tower, tokenizer, metric, observed=["dog", "cat"], templates=["a {}"])
    images = tower.encode_text(tokenizer(["a dog", "a cat"]))
    assert model.head.names(model(images)) == ["dog", "cat"]
    with pytest.raises(WeightspaceError, match=r"no \{\}"):
        ws.LabelMetric.from_open_clip(tower, tokenizer, classes, templates=["a"])


@pytest.mark.parametrize("temperature", [0.25, 1, 3.0])
def test_a_classifier_decides_at_a_temperature_as_the_head_does(temperature: float) -> None:
    metric = ws.LabelMetric.from_tree({"animal": "entity", "cat": "animal", "dog": "animal", "car": "entity"})
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(60, 3)), ["cat", "dog", "car"] * 20
    fitted = LogisticRegression().fit(X, y)
    classifier = ws.FrechetClassifier(fitted, metric, temperature=temperature)
    head = metric.head(observed=list(fitted.classes_), temperature=temperature)
    logits = torch.from_numpy(np.log(fitted.predict_proba(X)))
    assert classifier.predict(X).tolist() == head.names(head(logits))
    np.testing.assert_allclose(classifier.predict_proba(X).sum(1), 1)
    assert clone(classifier).temperature == temperature


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "warm"])
def test_a_temperature_that_is_none_is_refused(temperature: Any) -> None:
    metric = ws.LabelMetric.discrete(["cat", "dog"])
    fitted = LogisticRegression().fit([[0.0], [1.0]], ["cat", "dog"])
    with pytest.raises(WeightspaceError, match="temperature is a positive number"):
        ws.FrechetClassifier(fitted, metric, temperature=temperature).predict([[0.5]])
