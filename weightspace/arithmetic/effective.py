"""Effective weights: the weights that a network multiplies by, computed from the tensors in its checkpoint.

Supported are weight norm, ``w = g v/‖v‖``; spectral norm, ``W/σ`` with ``σ = uᵀWv``; and pruning, ``w = w_orig · mask``
(``torch.nn.utils.prune``). For any other parametrization, the weight can't be computed without the network's code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.arithmetic.parametrizations import Coordinates
from weightspace.arithmetic.spectral_norm import normalised
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.buffers import Parametrizations, check_ties, effective_name, is_parametrized_part
from weightspace.checkpoints.state_dict import tied_names
from weightspace.errors import WeightspaceError


def effective_weights(state: StateDict, label: str = "The network") -> StateDict:
    """Return a state dict with every parametrized weight replaced by the one that the network uses in evaluation mode.

    Args:
        state: a network's tensors.
        label: name of the network in errors, such as its path.

    Returns:
        Plain tensors unchanged, in order; tied tensors stay tied. A parametrized weight has its name in the module
        (``0.weight``) and the dtype of the tensors it is computed from, which are left out.

    Raises:
        WeightspaceError: a weight is complex, or under an unsupported parametrization.

    Example:
        >>> import torch
        >>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 3, bias=False))
        >>> list(effective_weights(layer.state_dict()))
        ['weight']
    """
    coordinates = Coordinates([state], finite=False)
    masks = coordinates.parametrizations.masks
    _check_known(state, coordinates.parametrizations, label)
    heads, tied = {name for name, _ in coordinates.parametrizations}, tied_names(state)
    check_ties(coordinates.parametrizations, tied)
    inside = {name: effective_name(name) if name in heads or name in masks else name for name in state}
    found: StateDict = {}
    for name, tensor in state.items():
        if name in coordinates.functions:
            continue
        if inside[name] != name and name in tied:
            found[inside[name]] = found[inside[tied[name]]]
        elif name in masks:
            found[inside[name]] = tensor.detach() * state[masks[name]].to(tensor.dtype)
        elif name in heads:
            found[inside[name]] = _weight(coordinates, state, name).to(tensor.device, tensor.dtype)
        else:
            found[name] = tensor
    return found


@torch.no_grad()
def _weight(coordinates: Coordinates, state: StateDict, name: str) -> Tensor:
    """Return a weight under weight norm, spectral norm, or the latter applied on top of the former."""
    weight = coordinates.of(state, name)
    for norm in coordinates.parametrizations.spectral_norms.get(name, ()):
        weight = normalised(weight, coordinates.spectral_model(norm, state))
    return weight


def _check_known(state: StateDict, parametrizations: Parametrizations, label: str) -> None:
    """Refuse tensors of unsupported parametrizations."""
    known = parametrizations.functions | {name for name, _ in parametrizations}
    for name in state:
        if is_parametrized_part(name) and name not in known:
            raise WeightspaceError(
                f"{label}: the weight {effective_name(name)!r} is under a parametrization ({name!r}) that can't be "
                "computed from the checkpoint; weight norm, spectral norm and pruning are supported. Expected "
                "torch.nn.utils.parametrize.remove_parametrizations on the network first."
            )
