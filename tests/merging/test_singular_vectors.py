"""Methods on the singular vectors of whole matrices: TSV-M, Iso-C and Iso-CTS, KnOTS, Core Space."""

import pytest
import torch
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge

KINDS = ["tsv_m", "iso_c", "iso_cts", "knots", "core_space"]


def merged(method: str, deltas: list[Tensor], weights: list[float] | None = None, **parameters: object) -> Tensor:
    """Return what is made of differences, in float64."""
    states = [{"w": delta.double()} for delta in deltas]
    base = {"w": torch.zeros(deltas[0].shape, dtype=torch.float64)}
    return merge(states, method, base=base, weights=weights, parameters=parameters)["w"]


def low_rank(seed: int, rank: int, shape: tuple[int, int] = (40, 30)) -> Tensor:
    left, right = normals(seed, (shape[0], rank), torch.float64), normals(seed + 99, (rank, shape[1]), torch.float64)
    return left @ right


def spectrum(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix)


@pytest.mark.parametrize("method", ["tsv_m", "knots", "core_space"])
def test_one_task_alone_comes_out_as_it_is(method: str) -> None:
    delta = normals(0, (12, 7), torch.float64)
    assert error(merged(method, [delta]), delta) < 1e-12


@pytest.mark.parametrize("method", KINDS)
def test_turning_rows_and_columns_turns_the_result(method: str) -> None:
    """The singular vectors turn with them; an inner merge by elements may see it, but not the one by sums."""
    deltas = [normals(seed, (12, 7), torch.float64) for seed in (1, 2, 3)]
    left, right = (torch.linalg.qr(normals(seed, (n, n), torch.float64)).Q for seed, n in ((4, 12), (5, 7)))
    options = {"inner": "task_arithmetic"} if method in ("knots", "core_space") else {}
    turned = merged(method, [left @ delta @ right for delta in deltas], **options)
    assert error(turned, left @ merged(method, deltas, **options) @ right) < 1e-9


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "knots", "core_space"])
def test_wide_and_tall_matrices_are_treated_alike(method: str) -> None:
    deltas = [normals(seed, (12, 7), torch.float64) for seed in (1, 2, 3)]
    options = {"inner": "task_arithmetic"} if method in ("knots", "core_space") else {}
    flipped = merged(method, [delta.T.contiguous() for delta in deltas], **options)
    assert error(flipped, merged(method, deltas, **options).T) < 1e-9


def test_tasks_in_orthogonal_subspaces_are_added_by_tsv_m() -> None:
    basis, other = (torch.linalg.qr(normals(seed, (30, 30), torch.float64)).Q for seed in (1, 2))
    deltas = [
        basis[:, i : i + 10] @ torch.diag(torch.arange(1.0, 11.0).double()) @ other[:, i : i + 10].T
        for i in (0, 10, 20)
    ]
    assert error(merged("tsv_m", deltas), sum(deltas)) < 1e-12


def test_iso_c_has_a_flat_spectrum_and_the_sum_s_singular_vectors() -> None:
    deltas = [normals(seed, (12, 7), torch.float64) for seed in (1, 2, 3)]
    found, total = merged("iso_c", deltas), deltas[0] + deltas[1] + deltas[2]
    assert error(spectrum(found), spectrum(total).mean().expand(7)) < 1e-12
    aligned = found.T @ total  # symmetric and positive: the same U and V
    assert error(aligned, aligned.T) < 1e-9
    assert torch.linalg.eigvalsh(aligned).min() > 0


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_iso_cts_has_a_flat_spectrum_too(common: float) -> None:
    deltas = [normals(seed, (12, 9), torch.float64) for seed in (1, 2, 3)]
    values = spectrum(merged("iso_cts", deltas, common=common))
    assert error(values, values.mean().expand(9)) < 1e-9
    if common == 1:
        assert error(merged("iso_cts", deltas, common=1.0), merged("iso_c", deltas)) < 1e-9


@pytest.mark.parametrize("method", ["knots", "core_space"])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (6, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_sum_in_a_shared_subspace_is_task_arithmetic(method: str, shape: tuple[int, int], normalize: bool) -> None:
    deltas = [normals(seed, shape, torch.float64) for seed in (1, 2, 3)]
    options = {"normalize": normalize, "lambda": 0.7}
    found = merged(method, deltas, [0.5, -1, 2], inner="task_arithmetic", **options)
    assert error(found, merged("task_arithmetic", deltas, [0.5, -1, 2], **options)) < 1e-9


@pytest.mark.parametrize("method", KINDS)
def test_the_merged_matrix_stays_in_the_subspace_of_the_tasks(method: str) -> None:
    """Low-rank differences, as adapters make them: what their columns don't span stays, up to rounding."""
    deltas = [low_rank(1, 3), low_rank(2, 3)]
    basis = torch.linalg.qr(torch.cat(deltas, dim=1)[:, [0, 1, 2, 30, 31, 32]]).Q
    found = merged(method, deltas)
    assert found.norm() > 1
    assert (found - basis @ (basis.T @ found)).norm() < 1e-9 * found.norm()


@pytest.mark.parametrize("method", KINDS)
def test_a_task_that_changed_nothing_brings_no_directions_of_its_own(method: str) -> None:
    deltas = [low_rank(1, 3), torch.zeros(40, 30)]
    basis = torch.linalg.qr(deltas[0][:, :3]).Q
    found = merged(method, deltas)
    assert found.isfinite().all()
    assert (found - basis @ (basis.T @ found)).norm() < 1e-9 * found.norm()


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts"])
def test_tensors_that_are_no_matrices_get_the_mean_of_their_differences(method: str) -> None:
    for shape in ((), (5,), (2, 3, 4), (2, 3, 2, 2)):
        deltas = [normals(seed, shape, torch.float64) for seed in (1, 2, 3)]
        assert error(merged(method, deltas), sum(deltas) / 3) < 1e-12
        assert error(merged(method, deltas, **{"lambda": -2.0}), -2 * sum(deltas) / 3) < 1e-12


def test_boosting_raises_the_small_singular_values_only() -> None:
    left, right = (torch.linalg.qr(normals(seed, (6, 6), torch.float64)).Q for seed in (1, 2))
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    delta = left * values @ right
    for beta, raised in ((0, 8), (0.49, 8), (0.6, 4), (0.8, 2), (1, 1)):
        found = merged("subspace_boosting", [delta], beta=beta)
        expected = torch.cat([values[:5].clamp(min=raised), torch.zeros(1)])
        assert error(spectrum(found), expected.sort(descending=True).values) < 1e-9
