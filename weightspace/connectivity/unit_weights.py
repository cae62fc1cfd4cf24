"""Setting the weight of a layer: a plain parameter, or one under weight norm or pruning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

#: Class registered by ``torch.nn.utils.parametrizations.weight_norm``, without its underscore.
_WEIGHT_NORM = "WeightNorm"


def has_weight(layer: nn.Module) -> bool:
    """Return whether a layer has a weight of any kind."""
    return isinstance(getattr(layer, "weight", None), Tensor)


def obstacle(layer: nn.Module) -> str | None:
    """Return the reason why a layer's weight or bias can't be set, or None."""
    if getattr(layer, "bias", None) is not None and "bias" not in layer._parameters:
        return "its bias is computed from other tensors"
    if "weight" in layer._parameters or _pruned(layer) or _old_weight_norm(layer) is not None:
        return None
    if not parametrize.is_parametrized(layer, "weight"):
        return "its weight is computed from other tensors (spectral norm?)"
    parts: Any = layer.parametrizations
    kinds = [type(part).__name__.lstrip("_") for part in parts["weight"]]
    return None if kinds == [_WEIGHT_NORM] else f"its weight is under {' and '.join(kinds)}"


@torch.no_grad()
def weight_of(layer: nn.Module) -> Tensor:
    """Return the effective weight of a layer that has no obstacle."""
    norm: Any = _old_weight_norm(layer)
    return layer.weight if norm is None else norm.compute_weight(layer)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def set_weight(layer: nn.Module, weight: Tensor) -> None:
    """Set the effective weight of a layer that has no obstacle.

    Under weight norm, the weight becomes the direction and the norms of its slices the magnitudes, as when torch
    applies weight norm. Elements masked by pruning stay zero.
    """
    norm: Any = _old_weight_norm(layer)
    parameters: Any = layer._parameters
    if norm is not None:
        parameters["weight_v"].copy_(weight)
        parameters["weight_g"].copy_(torch.norm_except_dim(weight.to(parameters["weight_v"].dtype), 2, norm.dim))
    elif "weight" in parameters:
        parameters["weight"].copy_(weight)
    elif _pruned(layer):
        parameters["weight_orig"].copy_(weight)
    else:
        layer.weight = weight.to(weight_of(layer).dtype)


def _pruned(layer: nn.Module) -> bool:
    return "weight_orig" in layer._parameters and "weight_mask" in layer._buffers


def _old_weight_norm(layer: nn.Module) -> WeightNorm | None:
    """Return the hook of ``torch.nn.utils.weight_norm``, the only one that computes the weight."""
    hooks = [hook for hook in layer._forward_pre_hooks.values() if getattr(hook, "name", None) == "weight"]
    return hooks[0] if len(hooks) == 1 and isinstance(hooks[0], WeightNorm) else None
