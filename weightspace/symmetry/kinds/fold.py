"""Folding: the gains of norms become part of the layers that read them; the function stays the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import SpecError
from weightspace.symmetry.kinds.symmetry_spec import Fold, SymmetrySpec


def fold(spec: SymmetrySpec, state: StateDict) -> StateDict:
    """Return a checkpoint in which gains are one and shifts zero wherever the spec folds a norm.

    Args:
        spec: of the architecture.
        state: every tensor by name.

    Returns:
        New tensors; floating-point ones are float64.

    Raises:
        SpecError: a gain is zero where the shift has to be divided by it.
    """
    result = {
        name: tensor.to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in state.items()
    }
    for one in spec.folds:
        fold_norm(one, result)
    return result


def check_folded(folds: Iterable[Fold], state: StateDict) -> None:
    """Check that gains are one and shifts zero wherever norms are folded.

    Raises:
        SpecError: they are not.
    """
    for one in folds:
        gain = None if one.gain is None else state[one.gain]
        shift = None if one.shift is None or one.keeps_shift else state[one.shift]
        for name, tensor, value in ((one.gain, gain, 1), (one.shift, shift, 0)):
            if tensor is not None and not bool((tensor == value).all()):
                raise SpecError(
                    f"{name} is not {value} everywhere, so the checkpoint is not folded; elements act on folded "
                    "checkpoints. Fold it first: weightspace.symmetry.fold(spec, state)."
                )


def fold_norm(one: Fold, state: StateDict) -> None:
    """Fold one norm of a float64 checkpoint in place; only the tensors that take part are needed.

    Raises:
        SpecError: a gain is zero where the shift has to be divided by it.
    """
    gain = None if one.gain is None else state[one.gain]
    shift = None if one.shift is None else state[one.shift]
    for reader in one.readers:
        weight = state[reader.weight].movedim(reader.axis, -1)
        if shift is not None and reader.bias is not None and not one.keeps_shift:
            state[reader.bias].add_(weight @ shift)
        if gain is not None:
            weight.mul_(gain)
    if shift is not None:
        shift.copy_(_over(shift, gain, one) if one.keeps_shift else torch.zeros_like(shift))
    if gain is not None:
        gain.fill_(1)


def _over(shift: Tensor, gain: Tensor | None, one: Fold) -> Tensor:
    """Return a shift divided by its gain."""
    if gain is None:
        return shift
    if bool(((gain == 0) & (shift != 0)).any()):
        reader = next(reader.weight for reader in one.readers if reader.bias is None)
        raise SpecError(
            f"{one.gain} is 0 where {one.shift} is not, and {reader} has no bias that could take the shift: "
            "the norm cannot be folded. Expected gains other than 0."
        )
    return torch.where(gain == 0, shift, shift / torch.where(gain == 0, 1, gain))
