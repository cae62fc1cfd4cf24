r"""Merging of the differences of several adapters in coordinates that they share; no full-size matrix is formed.

With :math:`\Delta_t = s_t B_t A_t`:

``knots``: :math:`[\Delta_1 \dots \Delta_T] = U \Sigma [V_1^\top \dots V_T^\top]`, merged as
:math:`U \operatorname{merge}(\Sigma V_1^\top, \dots)`;
``core_space``: :math:`U_B, V_A` bases of all :math:`B_t` and of all :math:`A_t^\top`, merged as
:math:`U_B \operatorname{merge}(U_B^\top \Delta_1 V_A, \dots) V_A^\top`;
``linear``: :math:`\sum_t w_t \Delta_t`, the factors concatenated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.lora.factored import Pair
from weightspace.merging.in_memory import merge
from weightspace.merging.methods._svd import column_space
from weightspace.merging.recipe.merge_roles import find_method, split_base
from weightspace.suggestions import unknown

#: Name on the command line -> paper.
ADAPTER_METHODS: Mapping[str, str] = {
    "knots": "Stoica et al. 2025, https://arxiv.org/abs/2410.19735",
    "core_space": "Panariello et al. 2025, https://arxiv.org/abs/2509.17786",
    "linear": "Hu et al. 2021, https://arxiv.org/abs/2106.09685",
}


class Space(NamedTuple):
    """Shared coordinates of several pairs: pair ``t`` is ``left · coordinates[t] · right``."""

    left: Tensor
    coordinates: list[Tensor]
    right: Tensor | None


class AdapterMethod:
    """A method with its inner method, weights and options, all checked."""

    def __init__(
        self,
        method: str,
        inner: str | None,
        weights: Sequence[float] | None,
        options: Mapping[str, Any],
        count: int,
    ) -> None:
        if method not in ADAPTER_METHODS:
            raise unknown("method of merging adapters", method, ADAPTER_METHODS)
        if not count:
            raise WeightspaceError("Found no adapters to merge; expected one or more folders or files.")
        if method == "linear" and (inner is not None or options):
            found = f"inner method {inner!r}" if inner is not None else f"option {next(iter(options))!r}"
            raise WeightspaceError(f"Method 'linear' sums the adapters and takes no inner method; found {found}.")
        self.method = method
        self.inner = "" if method == "linear" else inner or "ties"
        self.options = options
        row = find_method(self.inner or "linear")
        if self.inner and (row.base != "required" or row.evidence):
            raise WeightspaceError(
                f"The inner method {self.inner!r} cannot merge coordinates: expected one that works on differences "
                "from a base and needs no evidence, such as ties, task_arithmetic or dare_ties."
            )
        numbers = list(range(count))
        chosen = [1 / count] * count if weights is None and not self.inner else weights
        self.weights: Sequence[float] = split_base(row, numbers, -1 if self.inner else None, (), chosen)[2]
        self.inner_weights = None if weights is None else self.weights
        if self.inner:
            row.arguments(options, count)

    def groups(self, names: list[str]) -> list[list[str]]:
        """Group the tensors that are merged together: all of them if the inner method's scope is the model."""
        return [names] if self.options.get("scope") == "model" else [[name] for name in names]

    def merged(self, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the merged ``B`` and ``A`` by name."""
        if not self.inner:
            return {name: _sum(several, self.weights) for name, several in pairs.items()}
        find = _knots_space if self.method == "knots" else _core_space
        spaces = {name: find(several) for name, several in pairs.items()}
        count = len(self.weights)
        weights = {name: name.removeprefix("lora_").removeprefix("lycoris_") for name in spaces}  # no names of factors
        states = [{weights[name]: space.coordinates[index] for name, space in spaces.items()} for index in range(count)]
        zeros = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
        merged = merge(states, self.inner, base=zeros, weights=self.inner_weights, parameters=self.options)
        return {name: _factored(space, merged[weights[name]]) for name, space in spaces.items()}


def _knots_space(pairs: Sequence[Pair]) -> Space:
    """Return ``U`` and ``ΣV_tᵀ`` of the SVD of all differences concatenated, computed from their factors."""
    basis, blocks = torch.linalg.qr(torch.cat([pair.b for pair in pairs], dim=1))
    parts = blocks.split([pair.b.shape[1] for pair in pairs], dim=1)
    inside = [pair.scale * (part @ pair.a) for pair, part in zip(pairs, parts, strict=True)]
    rotation = column_space(inside)
    return Space(basis @ rotation, [rotation.T @ block for block in inside], None)


def _core_space(pairs: Sequence[Pair]) -> Space:
    """Return ``U_B``, the cores and ``V_Aᵀ``."""
    left = column_space([pair.b for pair in pairs])
    right = column_space([pair.a.T for pair in pairs])
    return Space(left, [pair.scale * ((left.T @ pair.b) @ (pair.a @ right)) for pair in pairs], right.T)


def _factored(space: Space, merged: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``B`` and ``A`` of merged coordinates, with the smaller rank that they allow."""
    if space.right is None:
        return space.left, merged
    if merged.shape[0] <= merged.shape[1]:
        return space.left, merged @ space.right
    return space.left @ merged, space.right


def _sum(pairs: Sequence[Pair], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the factors of ``Σ w ΔW`` by concatenation."""
    left = [pair.b * (weight * pair.scale) for pair, weight in zip(pairs, weights, strict=True)]
    return torch.cat(left, dim=1), torch.cat([pair.a for pair in pairs])
