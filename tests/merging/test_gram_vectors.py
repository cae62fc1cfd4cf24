"""Singular vectors at least cost: by Gram matrices and sketches, as accurate as an SVD, or by that."""

from typing import Any

import pytest
import torch
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge
from weightspace.merging.methods import _svd
from weightspace.merging.methods._gram import gram, spectrum
from weightspace.merging.methods._sketch import column_basis
from weightspace.merging.methods._svd import column_space, polar, singular_vectors, with_values

SHAPES = [(160, 300), (300, 160), (200, 200)]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("tsv_m", {}),
    ("iso_c", {}),
    ("iso_cts", {"common": 0.6}),
    ("knots", {"inner": "task_arithmetic"}),
    ("core_space", {"inner": "task_arithmetic"}),
]


@pytest.fixture
def no_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("an SVD of the whole matrix")

    monkeypatch.setattr(torch.linalg, "svd", refuse)


def decaying(shape: tuple[int, int], power: float, seed: int = 0) -> Tensor:
    """Return a float32 matrix with singular values 1, 2^-power, 3^-power, …"""
    small = min(shape)
    left = torch.linalg.qr(normals(seed, (shape[0], small), torch.float64)).Q
    right = torch.linalg.qr(normals(seed + 1, (shape[1], small), torch.float64)).Q
    return ((left * torch.arange(1, small + 1).double() ** -power) @ right.T).float()


@pytest.mark.usefixtures("no_svd")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 7])
def test_leading_triples_are_those_of_float64(shape: tuple[int, int], rank: int | None) -> None:
    matrix = decaying(shape, 0.5)
    left, values, right = singular_vectors(matrix, rank)
    truth = torch.linalg.svdvals(matrix.double())
    kept = rank or min(shape)
    assert len(values) == kept
    assert left.dtype == values.dtype == right.dtype == torch.float32
    assert error(values, truth[:kept]) < 1e-6
    for vectors in (left.T, right):
        assert error(vectors @ vectors.T, torch.eye(kept)) < 1e-6
    assert error(left.T @ matrix @ right.T, torch.diag(truth[:kept])) < 1e-6


@pytest.mark.usefixtures("no_svd")
@pytest.mark.parametrize("shape", SHAPES)
def test_small_singular_values_keep_their_digits_down_to_where_they_are_dropped(shape: tuple[int, int]) -> None:
    """Values from 1 to just above the rounding of float32; the orthogonal factor raises the smallest to 1."""
    small, bound = min(shape), max(shape) * torch.finfo(torch.float32).eps
    left, right = (torch.linalg.qr(normals(seed, (n, small), torch.float64)).Q for seed, n in enumerate(shape))
    values = torch.logspace(0, float(torch.tensor(1.5 * bound).log10()), small, dtype=torch.float64)
    matrix = ((left * values) @ right.T).float()
    found = polar(matrix).double()
    square = found @ found.T if shape[0] <= shape[1] else found.T @ found
    assert error(square, torch.eye(small)) < 1e-5
    truth, _, turned = _svd_of(matrix.double())
    assert error(found, truth @ turned) < 1e-5


def _svd_of(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a decomposition in float64 by eigenvectors of the block matrix, which doesn't square the values."""
    rows, columns = matrix.shape
    block = torch.zeros(rows + columns, rows + columns, dtype=torch.float64)
    block[:rows, rows:] = matrix
    values, vectors = torch.linalg.eigh(block + block.T)
    small = min(rows, columns)
    leading = vectors.flip(1)[:, :small] * 2**0.5
    return leading[:rows], values.flip(0)[:small], leading[rows:].T


def test_small_matrices_of_bad_condition_are_decomposed_as_a_whole() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1e-4, 2e-6, 0.0]))
    assert spectrum(gram([matrix]), 4 * torch.finfo(torch.float32).eps) is None
    left, values, right = singular_vectors(matrix)
    assert error(values, torch.tensor([1.0, 1e-4, 2e-6])) < 1e-6
    assert error(with_values(matrix, torch.ones_like), torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))) < 1e-6
    assert error(left @ right, polar(matrix)) < 1e-6


def test_float64_matrices_keep_all_their_digits() -> None:
    left, right = (torch.linalg.qr(normals(seed, (150, 150), torch.float64)).Q for seed in (1, 2))
    values = torch.logspace(0, -10, 150, dtype=torch.float64)
    found = polar(left * values @ right)
    assert error(found, left @ right) < 1e-4  # 1 by a Gram matrix


@pytest.mark.usefixtures("no_svd")
@pytest.mark.parametrize(("method", "parameters"), METHODS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_methods_on_large_float32_matrices_agree_with_float64(
    method: str, parameters: dict[str, Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [{"w": 0.01 * normals(seed, shape)} for seed in (1, 2, 3)]
    base = {"w": torch.zeros(shape)}
    found = merge(states, method, base=base, parameters=parameters)["w"]
    monkeypatch.undo()
    wide = [{"w": state["w"].double()} for state in states]
    truth = merge(wide, method, base={"w": base["w"].double()}, parameters=parameters)["w"]
    assert error(found, truth) < 2e-6


@pytest.mark.usefixtures("no_svd")
def test_boosting_of_large_matrices_agrees_with_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    state, base = {"w": decaying((160, 300), 1.0)}, {"w": torch.zeros(160, 300)}
    found = merge([state], "subspace_boosting", base=base, parameters={"beta": 0.5})["w"]
    monkeypatch.undo()
    wide = [{"w": state["w"].double()}]
    truth = merge(wide, "subspace_boosting", base={"w": base["w"].double()}, parameters={"beta": 0.5})["w"]
    assert error(found, truth) < 2e-6


@pytest.mark.usefixtures("no_svd")
def test_a_joined_column_space_has_the_rank_of_the_matrices() -> None:
    left = normals(1, (200, 5))
    basis = column_space([left @ normals(seed, (5, 150)) for seed in (2, 3)])
    assert basis.shape == (200, 5)
    assert error(basis @ (basis.T @ left), left) < 1e-5


def test_a_sketch_spans_matrices_of_low_rank_and_no_others() -> None:
    bound = 300 * torch.finfo(torch.float32).eps
    low = normals(1, (160, 5)) @ normals(2, (5, 300))
    basis = column_basis(low, 6, bound)
    assert basis is not None
    assert error(basis @ (basis.T @ low), low) < 1e-6
    assert column_basis(low, 6, bound, size=torch.tensor(1e-9)) is None
    assert column_basis(normals(1, (160, 16)) @ normals(2, (16, 300)), 6, bound) is None
    assert column_basis(decaying((160, 300), 2.0), 6, bound) is None
    assert column_basis(low, 20, bound) is None  # not few
    zero = column_basis(torch.zeros(160, 300), 6, bound)
    assert zero is not None
    assert len(singular_vectors(torch.zeros(160, 300), 6)[1]) == 0


def test_differences_of_low_rank_are_not_decomposed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = normals(1, (160, 5)) @ normals(2, (5, 300))
    sizes: list[int] = []
    whole = _svd.spectrum

    def noted(product: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(product))
        return whole(product, *arguments, **options)

    monkeypatch.setattr(_svd, "spectrum", noted)
    left, values, right = singular_vectors(matrix, 8)
    assert error(left * values @ right, matrix) < 2e-6
    assert len(values) == 5
    assert max(sizes) == 16


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_matrices_have_no_vectors(shape: tuple[int, int]) -> None:
    assert [part.shape for part in singular_vectors(torch.zeros(shape))] == [(shape[0], 0), (0,), (0, shape[1])]
    assert polar(torch.zeros(shape)).shape == shape
