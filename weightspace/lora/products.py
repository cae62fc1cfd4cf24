"""Changes that aren't a product of two factors: LyCORIS's Hadamard and Kronecker products, and full differences.

With Tucker's cores ``t``, a factor pair is ``a' (t ×₂ b)``, which is a pair of matrices, too. Only blocks of rows of a
product are computed at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.lora.adapter import Factors
from weightspace.lora.low_rank import Change, LowRank, wide_dtype


class Hadamard:
    """The change ``scale · (a₁ b₁) ⊙ (a₂ b₂)``.

    Source:
        FedPara, Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098; LyCORIS, Yeh et al. 2023,
        https://arxiv.org/abs/2309.14859.
    """

    def __init__(self, tensors: Mapping[str, Tensor], scale: float, dtype: torch.dtype) -> None:
        """Take the factors of both products; see ``hadamard_pairs``."""
        self.dtype = dtype
        pairs = hadamard_pairs(tensors)
        self._pairs = [(left.to(dtype), right.to(dtype)) for left, right in pairs]
        self._pairs[0] = ((pairs[0][0] * scale).to(dtype), self._pairs[0][1])
        self.width = pairs[0][1].shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` up to ``last``, fewer at the end."""
        one, other = (left[first:last] @ right for left, right in self._pairs)
        return one * other


class Kronecker:
    """The change ``scale · w₁ ⊗ w₂``.

    Source:
        KronA, Edalati et al. 2022, https://arxiv.org/abs/2212.10650; LyCORIS, https://arxiv.org/abs/2309.14859.
    """

    def __init__(self, tensors: Mapping[str, Tensor], scale: float, dtype: torch.dtype) -> None:
        """Take both matrices or their factors; see ``kronecker_halves``."""
        self.dtype = dtype
        (left, right), (self._lower, inner) = kronecker_halves(tensors)
        self._upper = (left if right is None else left @ right).mul(scale).to(dtype)
        self._lower = self._lower.to(dtype)
        self._inner = None if inner is None else inner.to(dtype)
        self.width = self._upper.shape[1] * (self._lower if inner is None else inner).shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` up to ``last``, fewer at the end."""
        size = len(self._lower)
        index = torch.arange(first, min(last, len(self._upper) * size))
        lower = self._lower[index % size]
        lower = lower if self._inner is None else lower @ self._inner
        return (self._upper[index // size].unsqueeze(2) * lower.unsqueeze(1)).flatten(1)


class Difference:
    """A change that is stored as a whole."""

    def __init__(self, tensor: Tensor, dtype: torch.dtype) -> None:
        """Take the difference, of any shape."""
        self.dtype = dtype
        self._matrix = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(-1, 1)
        self.width = self._matrix.shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` up to ``last``, fewer at the end."""
        return self._matrix[first:last].to(self.dtype)


class Stacked:
    """Changes of parts of the rows; other rows don't change."""

    def __init__(self, changes: Mapping[int, Change], heights: Mapping[int, int], dtype: torch.dtype) -> None:
        """Take the changes.

        Args:
            changes: first row -> the change from there on, of one width.
            heights: first row -> number of rows.
            dtype: dtype to compute in.
        """
        self.dtype = dtype
        self._changes, self._heights = changes, heights
        self.width = next(iter(changes.values())).width

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` up to ``last``."""
        rows = torch.zeros(last - first, self.width, dtype=self.dtype)
        for start, change in self._changes.items():
            low, high = max(first, start), min(last, start + self._heights[start])
            if low < high:
                rows[low - first : high - first] = change.rows(low - start, high - start)
        return rows


class Rows:
    """Some rows of a change."""

    def __init__(self, whole: Change, first: int, height: int) -> None:
        """Take the change, the first row, and the number of rows."""
        self.dtype, self.width = whole.dtype, whole.width
        self._whole, self._first, self._height = whole, first, height

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` up to ``last``, fewer at the end."""
        return self._whole.rows(self._first + first, self._first + min(last, self._height))


def change_of(factors: Factors, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Change:
    """Return the change of a tensor, without DoRA.

    Args:
        factors: the change; not of a part of all experts, nor transposed.
        tensors: role -> tensor.
        dtype: dtype to compute in.
    """
    if factors.product == "hadamard":
        return Hadamard(tensors, factors.scale, dtype)
    if factors.product == "kronecker":
        return Kronecker(tensors, factors.scale, dtype)
    if factors.product == "stacked":
        changes = {
            start: change_of(own, {role: tensors[f"{start}:{role}"] for role in own.names}, dtype)
            for start, own in factors.stack.items()
        }
        return Stacked(changes, {start: own.shape[0] for start, own in factors.stack.items()}, dtype)
    if factors.product == "rows":
        ((first, whole),) = factors.stack.items()
        return Rows(change_of(whole, tensors, dtype), first, factors.shape[0])
    if factors.product == "difference":
        return Difference(tensors["difference"], dtype)
    return LowRank(low_rank_a(tensors), tensors["B"], factors.scale, dtype=dtype)


def low_rank_a(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return ``A``, which contains Tucker's core if there is one, in its own dtype, or at least float32 then."""
    a = tensors["A"]
    return contracted(tensors["mid"], a.flatten(1)).to(wide_dtype(a.dtype)) if "mid" in tensors else a


def hadamard_pairs(tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the factors of both products as float64 matrices, ``(out, r)`` and ``(r, in · kernel)``."""
    return [
        tucker_pair(tensors[f"hada_w{side}_a"], tensors[f"hada_w{side}_b"], tensors.get(f"hada_t{side}"))
        for side in "12"
    ]


def kronecker_halves(tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    """Return both matrices as float64 matrices, or as two factors each if they are stored so."""
    halves: list[tuple[Tensor, Tensor | None]] = []
    for half in "12":
        whole = tensors.get(f"lokr_w{half}")
        if whole is None:
            a, b = tensors[f"lokr_w{half}_a"], tensors[f"lokr_w{half}_b"]
            halves.append(tucker_pair(a, b, tensors.get(f"lokr_t{half}")))
        else:
            halves.append((whole.to(torch.float64).flatten(1), None))
    return halves


def tucker_pair(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return LyCORIS's pair as float64 matrices.

    Args:
        a: ``(out, r)``; ``(r, out)`` with a core.
        b: ``(r, in)``, or ``(r, in · kernel)`` without a core.
        core: ``(r, r, *kernel)``, or None.
    """
    a, b = a.to(torch.float64), b.to(torch.float64)
    return (a, b) if core is None else (a.T, contracted(core, b))


def contracted(core: Tensor, b: Tensor) -> Tensor:
    """Return ``Σ_n core[m, n, …] b[n, j]`` as a float64 matrix ``(m, j · kernel)``."""
    return torch.einsum("mn...,nj->mj...", core.to(torch.float64), b.to(torch.float64)).flatten(1)
