r"""WUDI: the task vector that disturbs the outputs of every task least, as far as its own task vector spans the inputs.

.. math:: b + \lambda\, \tau, \qquad \tau = \arg\min_\tau \sum_i \frac{\lVert (\tau - \tau_i)\, \tau_i^\top \rVert_F^2}
    {\lVert \tau_i \rVert_F^2} = \Bigl(\sum_i \tau_i G_i\Bigr) \Bigl(\sum_i G_i\Bigr)^{+}, \qquad
    G_i = \frac{\tau_i^\top \tau_i}{\lVert \tau_i \rVert_F^2}

The rows of a linear layer's task vector lie in the span of its inputs, so that :math:`\tau_i^\top` stands for the
inputs of task ``i``. The paper descends from the sum of the task vectors by Adam; here the minimum is computed in
closed form, that of the least norm, unless ``steps`` is given. Directions in which differences are not larger than the
rounding of float32, with which models are stored, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._descent import adam, changed
from weightspace.merging.methods._parameters import Lambda
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._svd import on_matrices
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ (Σ τ_i G_i)(Σ G_i)⁺, with G_i = τ_iᵀτ_i / ‖τ_i‖² of the differences τ_i",
    source="Cheng et al. 2025, https://arxiv.org/abs/2503.08099",
    base="required",
    granularity="whole",
    weighted=False,
    scale_free=False,
    whole_copies=8,
    on_device=True,
)
def wudi(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
    steps: Annotated[
        int, Parameter(help="steps of Adam from the sum of the differences, the paper's 300; 0 for the minimum", low=0)
    ] = 0,
) -> Formula:
    """Return the formula of WUDI (equation 9); tensors other than matrices get the mean of their differences.

    With ``steps``, the result depends on the scale of the differences, since Adam moves each element by at most 1e-5.
    """
    merge = partial(_descended, steps=steps) if steps else _least
    return on_matrices(stack, merge, lambda_)


def _least(differences: list[Tensor], rounding: float) -> Tensor:
    """Return the minimum of the least norm, without directions in which differences are the rounding of their models.

    Those have no meaning, but would be amplified until they fit what the other directions leave over.
    """
    moved, sizes = changed(differences)
    if not moved:
        return differences[0]
    least = rounding**2 * sum(size**-2 for size in sizes)
    if _is_wide(moved):  # (Σ τ_i G_i)(SᵀS)⁺ = C (SSᵀ)⁺S
        stacked, factors = _stacked(moved, sizes)
        return factors @ _inverse(stacked @ stacked.T, least) @ stacked
    total, whole = _sums(moved, sizes)
    return total @ _inverse(whole, least)


def _is_wide(differences: list[Tensor]) -> bool:
    """Return whether one row has more elements than all differences have rows."""
    rows, columns = differences[0].shape
    return columns > rows * len(differences)


def _stacked(differences: list[Tensor], sizes: list[float]) -> tuple[Tensor, Tensor]:
    """Return ``S``, the unit task vectors one below the other, and ``C`` with ``Σ τ_i G_i = C S``."""
    stacked = torch.cat([difference.double() / size for difference, size in zip(differences, sizes, strict=True)])
    units = stacked.split(len(differences[0]))
    return stacked, torch.cat([size * unit @ unit.T for unit, size in zip(units, sizes, strict=True)], dim=1)


def _sums(differences: list[Tensor], sizes: list[float]) -> tuple[Tensor, Tensor]:
    """Return ``Σ τ_i G_i`` and ``Σ G_i``."""
    columns = differences[0].shape[1]
    total = torch.zeros_like(differences[0], dtype=torch.float64)
    whole = torch.zeros(columns, columns, dtype=torch.float64, device=total.device)
    for difference, size in zip(differences, sizes, strict=True):
        unit = difference.double() / size
        product = unit.T @ unit
        whole += product
        total.addmm_(unit, product, alpha=size)
    return total, whole


def _inverse(product: Tensor, least: float) -> Tensor:
    """Return the pseudo-inverse of a symmetric matrix without eigenvalues up to ``least``, or up to their rounding."""
    return torch.linalg.pinv(product, hermitian=True, atol=least, rtol=len(product) * torch.finfo(product.dtype).eps)


def _descended(differences: list[Tensor], rounding: float, *, steps: int) -> Tensor:
    """Return the result of Adam from the sum of the differences."""
    moved, sizes = changed(differences)
    merged = torch.zeros_like(differences[0], dtype=torch.float64)
    for difference in moved:
        merged += difference
    return adam(merged, _slope(moved, sizes), steps) if moved else merged


def _slope(differences: list[Tensor], sizes: list[float]) -> Callable[[Tensor], Tensor]:
    """Return the gradient of the loss."""
    if _is_wide(differences):
        stacked, factors = _stacked(differences, sizes)
        return lambda merged: 2 * (merged @ stacked.T - factors) @ stacked
    total, whole = _sums(differences, sizes)
    return lambda merged: 2 * (merged @ whole - total)
