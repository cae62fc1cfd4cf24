"""Models reduced to the task vectors of TIES: trimmed, and without elements that disagree with the elected sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.buffers import find_parametrizations
from weightspace.checkpoints.measure import is_inexact
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._tensor_stack import InMemory, TensorStack
from weightspace.merging.methods._topk import Cut
from weightspace.merging.methods.ties import model_cuts


def elected_models(
    models: Sequence[StateDict], base: StateDict, density: float, tied: Mapping[str, str]
) -> list[StateDict]:
    """Return the models with all elements reset to the base but those that TIES would add up.

    The largest ``density · n`` differences of every model are kept, over all of its tensors, and of these the ones that
    have the sign of their sum, an increase if it is 0. Kept elements are the model's own, bit for bit.

    Args:
        models: the models.
        base: their base, of the same names and shapes.
        density: fraction of the differences to keep.
        tied: name of a tied tensor of the network -> its first name; it is counted once.

    Raises:
        WeightspaceError: weights are under weight norm or spectral norm, or complex.
    """
    check_plain(base)
    names = [name for name in base if name not in tied and is_inexact(base[name])]
    largest = largest_of_model(models, base, density, names)
    elected = [dict(model) for model in models]
    for name in names:
        kept = _agreeing([model[name] for model in models], base[name], [masks[name] for masks in largest])
        for state, model, mask in zip(elected, models, kept, strict=True):
            state[name] = torch.where(mask, model[name], base[name].to(model[name]))
    for state in elected:
        state.update({name: state[first] for name, first in tied.items()})
    return elected


def check_plain(base: StateDict) -> None:
    """Check that the tensors of a network are its weights, and real.

    Raises:
        WeightspaceError: weights are under weight norm or spectral norm, or complex.
    """
    for name, tensor in base.items():
        if tensor.is_complex():
            raise WeightspaceError(f"{name!r} is complex; only differences of real numbers can be compared in size.")
    if list(find_parametrizations({name: tuple(tensor.shape) for name, tensor in base.items()})):
        raise WeightspaceError(
            "The networks have weights under weight norm or spectral norm, whose differences cannot be compared in "
            "size. Remove the parametrization from every model first."
        )


def largest_of_model(
    models: Sequence[StateDict], base: StateDict, density: float, names: Sequence[str]
) -> list[StateDict]:
    """Return a mask of the ``density · n`` largest differences of each model, bools by name, over tensors together."""
    stacks = [_stack(name, models, base) for name in sorted(names) if base[name].numel()]
    cuts = model_cuts(stacks, [{"density": [density] * len(models)}] * len(stacks))
    empty = {name: torch.zeros(base[name].shape, dtype=torch.bool) for name in names if not base[name].numel()}
    return [
        {**{stack.name: _largest(stack, index, cuts[stack.name]["cuts"][index]) for stack in stacks}, **empty}
        for index in range(len(models))
    ]


def _stack(name: str, models: Sequence[StateDict], base: StateDict) -> TensorStack:
    """Return the tensors of a name."""
    labels = [f"model {number}" for number in range(1, len(models) + 1)]
    double = any(state[name].dtype in (torch.float64, torch.complex128) for state in (*models, base))
    dtype = torch.float64 if double else torch.float32
    sources = [InMemory(model[name].cpu()) for model in models]
    return TensorStack(name, sources, InMemory(base[name].cpu()), labels, dtype=dtype)


def _largest(stack: TensorStack, index: int, cut: Cut) -> Tensor:
    """Return which differences of a model a cut keeps, compared in the dtype that it was found in."""
    kept = []
    for chunk in stack.chunks():
        size = (chunk.origin - chunk.models[index]).abs_()
        kept.append(cut.kept_at(size, torch.arange(chunk.start, chunk.start + len(size))))
    return torch.cat(kept).view(stack.shape)


def _agreeing(models: Sequence[Tensor], base: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """Return which elements of each model are in its mask, and agree with the sign of the sum of those."""
    origin = base.detach().double()
    trimmed = [(model.detach().double() - origin) * mask for model, mask in zip(models, masks, strict=True)]
    sign = torch.where(sum(trimmed, torch.zeros_like(origin)) >= 0, 1.0, -1.0)
    return [difference * sign > 0 for difference in trimmed]
