"""The door to the assignment solver."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from weightspace.matching import assignment
from weightspace.matching.assignment import assign, assign_by_candidates, largest_of_rows


@pytest.mark.parametrize("size", [1, 2, 5, 7])
@pytest.mark.parametrize("seed", range(5))
def test_an_assignment_has_the_largest_gain_of_all(size: int, seed: int) -> None:
    gains = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    best = max(
        sum(float(gains[row, column]) for row, column in enumerate(order))
        for order in itertools.permutations(range(size))
    )
    found = assign(gains)
    assert sorted(found.tolist()) == list(range(size))
    assert float(gains.gather(1, found[:, None]).sum()) == pytest.approx(best, rel=1e-6)


def test_equal_gains_give_some_permutation() -> None:
    assert sorted(assign(torch.zeros(4, 4)).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_gains_of_any_precision_are_assigned_and_left_as_they_are(dtype: torch.dtype) -> None:
    gains = torch.tensor([[1.0, 3.0, 0.0], [2.0, 3.5, 0.0], [0.0, 9.0, 1.0]], dtype=dtype, requires_grad=True)
    assert assign(gains).tolist() == [2, 0, 1]
    assert assign(gains).dtype == torch.int64
    assert gains.detach()[2].tolist() == [0.0, 9.0, 1.0]


def assert_optimal(table: np.ndarray, found: np.ndarray | None) -> None:
    """Check that an assignment has the total gain of scipy's, up to float64's rounding."""
    rows = np.arange(len(table))
    assert found is not None
    assert sorted(found) == list(rows)
    exact = table.astype(np.float64)
    best = exact[rows, linear_sum_assignment(exact, maximize=True)[1]].sum()
    assert exact[rows, found].sum() == pytest.approx(best, rel=0, abs=1e-12 * np.abs(exact).sum())


def by_candidates(table: np.ndarray, count: int) -> np.ndarray | None:
    """Return the assignment among the largest entries of each row and the diagonal, so that there always is one."""
    return assign_by_candidates(table, largest_of_rows(table, count) | np.eye(len(table), dtype=bool))


@given(
    table=st.integers(1, 9).flatmap(
        lambda n: st.one_of(
            arrays(np.float64, (n, n), elements=st.integers(-3, 3).map(float)),  # many ties
            arrays(np.float32, (n, n), elements=st.floats(-1, 1, width=32)),
        )
    ),
    candidates=st.integers(1, 3),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_a_few_candidates_give_the_optimal_assignment(table: np.ndarray, candidates: int) -> None:
    assert_optimal(table, by_candidates(table, candidates))


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e20, 1e36])
@pytest.mark.parametrize("seed", range(3))
def test_candidates_suffice_at_any_scale(scale: float, seed: int) -> None:
    table = (np.random.default_rng(seed).standard_normal((40, 40)) * scale).astype(np.float32)
    assert_optimal(table, by_candidates(table, 2))


@pytest.mark.parametrize("kind", ["equal rows", "equal columns", "rank one", "dead units"])
def test_candidates_suffice_for_degenerate_gains(kind: str) -> None:
    rng = np.random.default_rng(0)
    vector, table = rng.standard_normal(60), rng.standard_normal((60, 60))
    if kind == "dead units":
        table[:20] = table[:, :20] = 0
    else:
        columns = vector if kind == "rank one" else np.ones(60)
        table = np.outer(columns, vector) if kind != "equal columns" else np.outer(vector, columns)
    assert_optimal(table, by_candidates(table.astype(np.float32), 4))


def test_a_crowded_problem_is_solved_by_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patched:
        patched.delattr(assignment, "_by_all")
        found = assign(gains)
    best = gains.numpy().argmax(1)
    assert found.tolist() == assignment._by_all(gains.numpy(), best).tolist()


def test_too_many_equal_gains_are_left_to_the_dense_solver() -> None:
    assert by_candidates(np.zeros((200, 200), dtype=np.float32), 24) is None
    gains = torch.zeros(1024, 1024)
    gains[0, 5] = 1
    found = assign(gains)
    assert found[0] == 5
    assert sorted(found.tolist()) == list(range(1024))


def test_rows_that_cannot_all_have_one_of_their_best_columns_are_left_to_the_dense_solver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gains = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    gains[:100, :30] += 100  # 100 rows whose best columns are the same 30
    with monkeypatch.context() as patched:
        patched.delattr(assignment, "assign_by_candidates")
        found = assign(gains)
    assert_optimal(gains.numpy(), found.numpy())
