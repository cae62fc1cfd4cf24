"""Every row of the table against the oracle of its formula in float64, on tensors of any shape."""

from collections.abc import Sequence
from typing import Any

import arc_oracles
import named_oracles
import numpy as np
import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import ROWS, VARIANTS, Variant, evidence_of, floats, normals, sample
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.merging import merge

#: Relative to the largest input, as a result may be what two leave of each other; the second one where singular vectors
#: are in it, of which two of near values turn by their rounding over the gap.
TOLERANCE = {torch.float32: (2e-6, 2e-4), torch.float64: (1e-12, 1e-9)}

LOCAL = [variant for variant in VARIANTS if not variant.whole]


def distance(found: Tensor, expected: oracles.Array, inputs: Sequence[Tensor]) -> float:
    """Return the error relative to the largest of the inputs and the result."""
    size = max(oracles.norm(np.asarray(array)) for array in [expected, *arrays(inputs)])
    return oracles.norm(np.asarray(found.double().numpy() - expected)) / (size or 1.0)


def arrays(tensors: Sequence[Tensor]) -> list[oracles.Array]:
    return [tensor.double().numpy() for tensor in tensors]


def drawn_masks(variant: Variant, models: Sequence[StateDict], base: StateDict, name: str) -> list[np.ndarray]:
    """Return the masks of the models: what remains where one alone has a weight, and nothing is rescaled."""
    if not variant.random:
        return [np.ones(base[name].shape, bool)] * len(models)
    method = "dare_linear" if variant.method.startswith("dare") else "della_linear"
    kept = {name: value for name, value in variant.parameters.items() if name in ("density", "epsilon", "seed")}
    masks = []
    for index in range(len(models)):
        weights = [float(other == index) for other in range(len(models))]
        found = merge(models, method, base=base, weights=weights, parameters={**kept, "rescale": "none"})
        masks.append((found[name] != base[name]).numpy())
    return masks


def by_oracle(
    variant: Variant,
    models: Sequence[StateDict],
    base: StateDict,
    name: str,
    weights: Sequence[float],
) -> oracles.Array:
    """Return the oracle's answer for one tensor."""
    evidence = [state.get(name) for state in evidence_of(variant.row, models) or ()]
    parameters: dict[str, Any] = {key: value for key, value in variant.parameters.items() if key != "seed"}
    if variant.method.startswith(("dare", "della")):
        parameters.pop("epsilon", None)
    return named_oracles.merged(
        variant.method,
        arrays([model[name] for model in models]),
        base[name].double().numpy() if variant.with_base else None,
        weights,
        parameters,
        masks=drawn_masks(variant, [{name: model[name]} for model in models], {name: base[name]}, name),
        evidence=arrays([one for one in evidence if one is not None]) or None,
    )


@pytest.mark.parametrize("variant", LOCAL, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_row_agrees_with_its_oracle(variant: Variant, dtype: torch.dtype) -> None:
    models, base = sample(variant, dtype)
    weights = [0.4, 1.1, -0.2][: variant.count] if variant.row.weighted else None
    if variant.method == "fisher":
        weights = [0.4, 1.1, 0.2]
    merged = variant(models, base, weights=weights)
    for name, tensor in floats(merged).items():
        if tensor.numel():
            expected = by_oracle(variant, models, base, name, weights or [1.0] * variant.count)
            assert distance(tensor, expected, [m[name] for m in models]) < TOLERANCE[dtype][variant.singular], name


@pytest.mark.parametrize("variant", [v for v in LOCAL if not v.singular and not v.random], ids=str)
@given(seed=st.integers(0, 2**20), shape=st.lists(st.integers(1, 7), max_size=4).map(tuple), data=st.data())
@settings(max_examples=10, deadline=None)
def test_every_row_agrees_with_its_oracle_where_many_differences_are_equal_or_zero(
    variant: Variant, seed: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    """On small whole numbers, so that thresholds, signs and angles are ties; those of the oracle are exact."""
    count = data.draw(st.integers(*_counts(variant)))
    generator = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randint(-2, 3, shape, generator=generator).double()} for _ in range(count + 1)]
    if variant.method == "arcee_fusion":  # rounding decides for importances at the bound
        importance, bound = oracles.arcee_importance(states[1]["w"].numpy(), states[0]["w"].numpy())
        differences = np.abs(importance - bound)
        assume(bool(((differences == 0) | (differences > 1e-9 * bound)).all()))
        assume(bool((importance[differences == 0] == 0).all()))
    weights = [1.0, 0.5, 0.25, 2.0][:count]
    lists = {name: value for name, value in variant.parameters.items() if isinstance(value, list)}
    own = {name: (value * 2)[:count] for name, value in lists.items()}
    variant = Variant(variant.method, {**variant.parameters, **own}, variant.with_base)
    merged = variant(states[1:], states[0], weights=weights if variant.row.weighted else None)["w"]
    expected = by_oracle(variant, states[1:], states[0], "w", weights if variant.row.weighted else [1.0] * count)
    assert distance(merged, expected, [state["w"] for state in states]) < 1e-7


def _counts(variant: Variant) -> tuple[int, int]:
    low, high = variant.row.models
    return low, high or 4


def test_the_oracles_give_what_is_worked_out_by_hand() -> None:
    base = np.zeros(4)
    a, b = np.array([3.0, -1.0, 2.0, 0.0]), np.array([-1.0, -1.0, 4.0, 5.0])
    assert oracles.ties([a, b], base, [1, 1], [1, 1]).tolist() == [3, -1, 3, 5]
    assert oracles.ties([a, b], base, [1, 1], [0.5, 0.5]).tolist() == [3, 0, 3, 5]
    assert oracles.ties([a, b], base, [1, 2], [0, 0], normalize=False).tolist() == [3, 0, 0, 10]
    assert oracles.breadcrumbs([a], base, [1], [0.5], [0.25]).tolist() == [0, -1, 2, 0]
    assert oracles.breadcrumbs([a], base, [1], [0.9], [0.5]).tolist() == [0, -1, 2, 0]
    assert oracles.della_probabilities(np.array([[1.0, 3.0, 2.0]]), 0.5, 0.1) == pytest.approx(
        np.array([[0.4, 0.6, 0.5]])
    )
    assert oracles.model_stock([a, a], base).tolist() == a.tolist()
    assert oracles.model_stock([a, -a], base).tolist() == base.tolist()
    assert arc_oracles.slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5) == pytest.approx(np.sqrt([0.5, 0.5]))
    assert arc_oracles.karcher([np.array([1.0, 0.0]), np.array([0.0, 1.0])]) == pytest.approx(np.sqrt([0.5, 0.5]))
    assert oracles.ram([a, b], base, 0).tolist() == [1, -1, 3, 5]
    assert oracles.nearswap(a, base, 1.5).tolist() == [1.5, -1, 1.5, 0]


def test_every_row_has_an_oracle() -> None:
    for row in ROWS:
        models, base = sample(row)
        oracles_result = by_oracle(row, models, base, "tall.weight", [1.0] * row.count)
        assert oracles_result.shape == normals(0, (7, 5)).shape
