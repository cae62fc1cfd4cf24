"""Shapes of the changes that an adapter's tensors stand for, and checks that the tensors fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from weightspace.checkpoints.metadata import TensorInfo
from weightspace.errors import CheckpointError

Shape = tuple[int, ...]


class _MisfitError(Exception):
    """Two tensors of a product don't fit."""


def product_shape(path: Path, module: str, product: str, tensors: Mapping[str, TensorInfo]) -> tuple[Shape, int]:
    """Return the shape of a module's change, and the rank that divides its alpha; 0 if it has none.

    LoHa and LoKr flatten the kernels of convolutions unless they are in Tucker's form; their shape is then
    ``(out, in · kernel)``.

    Args:
        path: the file, for errors.
        module: name of the module, for errors.
        product: a name in ``PRODUCTS``.
        tensors: role -> dtype and shape.

    Raises:
        CheckpointError: the shapes don't fit each other.
    """
    shapes = {role: info.shape for role, info in tensors.items()}
    try:
        shape, rank = _SHAPES[product](shapes)
        _require(len(shape) >= 1 and all(math.prod(own) for own in shapes.values()))
    except (_MisfitError, KeyError, IndexError, ValueError):
        found = ", ".join(f"{role} {size}" for role, size in sorted(shapes.items()))
        raise CheckpointError(
            f"{path}: the tensors of {module!r} don't fit each other: {found}. Is the file damaged?"
        ) from None
    return shape, rank


def _require(condition: bool) -> None:
    if not condition:
        raise _MisfitError


def _low_rank(shapes: Mapping[str, Shape]) -> tuple[Shape, int]:
    a, b = shapes["A"], shapes["B"]
    rank = a[0]
    _require(min(len(a), len(b)) >= 2)
    if "mid" not in shapes and set(a[2:]) <= {1}:  # some files leave out a kernel of 1 in one factor
        axes = max(len(a), len(b))
        a, b = (*a, *[1] * (axes - len(a))), (*b, *[1] * (axes - len(b)))
    _require(len(a) == len(b) and b[1] == rank and set(b[2:]) <= {1})
    if "mid" not in shapes:
        return (b[0], *a[1:]), rank
    mid = shapes["mid"]
    _require(len(mid) == len(a) > 2 and mid[:2] == (rank, rank) and set(a[2:]) <= {1})
    return (b[0], a[1], *mid[2:]), rank


def _hadamard(shapes: Mapping[str, Shape]) -> tuple[Shape, int]:
    sides = []
    for side in "12":
        a, b, core = shapes[f"hada_w{side}_a"], shapes[f"hada_w{side}_b"], shapes.get(f"hada_t{side}")
        sides.append(_side(a, b, core))
    (first, rank), (second, other) = sides
    _require(first == second and rank == other and ("hada_t1" in shapes) == ("hada_t2" in shapes))
    return first, rank


def _side(a: Shape, b: Shape, core: Shape | None) -> tuple[Shape, int]:
    """Return the shape and rank of ``a b``, or of ``aᵀ · core · b`` in Tucker's form."""
    (rows, inner), (rank, columns) = (a if core is None else a[::-1]), b
    if core is None:
        _require(inner == rank)
        return (rows, columns), rank
    _require(len(core) > 2 and core[:2] == (inner, rank))
    return (rows, columns, *core[2:]), rank


def _kronecker(shapes: Mapping[str, Shape]) -> tuple[Shape, int]:
    halves, ranks = [], []
    for half in ("1", "2"):
        whole, core = shapes.get(f"lokr_w{half}"), shapes.get(f"lokr_t{half}")
        pair = [shapes[name] for name in (f"lokr_w{half}_a", f"lokr_w{half}_b") if name in shapes]
        _require((whole is None) == (len(pair) == 2) and (whole is None or (not pair and core is None)))
        if whole is None:
            whole, rank = _side(pair[0], pair[1], core)
            ranks.append(rank)
        halves.append(whole)
    first, second = halves
    _require(len(set(ranks)) <= 1)
    _require(len(first) == 2 <= len(second))
    return (first[0] * second[0], first[1] * second[1], *second[2:]), ranks[0] if ranks else 0


def _difference(shapes: Mapping[str, Shape]) -> tuple[Shape, int]:
    return shapes["difference"], 0


_SHAPES = {"low-rank": _low_rank, "hadamard": _hadamard, "kronecker": _kronecker, "difference": _difference}
