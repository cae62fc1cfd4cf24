"""Models reduced to the task vectors of TIES: trimmed, and without elements that disagree with the elected sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.buffers import find_parametrizations
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state_dict import tied_names
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._tensor_stack import InMemory, TensorStack
from weightspace.merging.methods._topk import Cut
from weightspace.merging.methods.ties import model_cuts


def elected_models(models: Sequence[StateDict], base: StateDict, density: float) -> list[StateDict]:
    """Return the models with all elements reset to the base but those that TIES would add up.

    The largest ``density · n`` differences of every model are kept, over all of its tensors, and of these the ones that
    have the sign of their sum, an increase if it is 0. Kept elements are the model's own, bit for bit.

    Raises:
        WeightspaceError: weights are under weight norm or spectral norm, of which TIES can't tell the size.
    """
    if list(find_parametrizations({name: tuple(tensor.shape) for name, tensor in base.items()})):
        raise WeightspaceError(
            "The networks have weights under weight norm or spectral norm, whose differences TIES cannot trim. Use "
            "AdaMerging without ties (--ties), or remove the parametrization from every model first."
        )
    tied = tied_names(base)
    stacks = [
        _stack(name, models, base)
        for name in sorted(base)
        if name not in tied and is_inexact(base[name]) and base[name].numel()
    ]
    cuts = model_cuts(stacks, [{"density": [density] * len(models)}] * len(stacks))
    elected = [dict(model) for model in models]
    for stack in stacks:
        kept = _kept(models, base, stack.name, cuts[stack.name]["cuts"])
        for state, model, mask in zip(elected, models, kept, strict=True):
            state[stack.name] = torch.where(mask, model[stack.name], base[stack.name].to(model[stack.name]))
    for state in elected:
        state.update({name: state[first] for name, first in tied.items()})
    return elected


def _stack(name: str, models: Sequence[StateDict], base: StateDict) -> TensorStack:
    """Return the tensors of a name."""
    labels = [f"model {number}" for number in range(1, len(models) + 1)]
    double = any(state[name].dtype in (torch.float64, torch.complex128) for state in (*models, base))
    dtype = torch.float64 if double else torch.float32
    return TensorStack(name, [InMemory(model[name]) for model in models], InMemory(base[name]), labels, dtype=dtype)


def _kept(models: Sequence[StateDict], base: StateDict, name: str, cuts: Sequence[Cut]) -> list[Tensor]:
    """Return which elements of each model are among the largest and agree in sign."""
    origin = base[name].detach().double()
    trimmed = []
    for model, cut in zip(models, cuts, strict=True):
        difference = model[name].detach().double() - origin
        trimmed.append(difference * _largest(model[name], base[name], cut))
    sign = torch.where(sum(trimmed, torch.zeros_like(origin)) >= 0, 1.0, -1.0)
    return [difference * sign > 0 for difference in trimmed]


def _largest(model: Tensor, base: Tensor, cut: Cut) -> Tensor:
    """Return which differences a cut keeps, compared in the dtype that it was found in."""
    dtype = torch.promote_types(torch.promote_types(model.dtype, base.dtype), torch.float32)
    sizes = (base.detach().to(dtype) - model.detach().to(dtype)).abs_()
    return cut.kept_at(sizes.flatten(), torch.arange(sizes.numel())).view(model.shape)
