"""The routers of a mixture of experts: linear modules whose logits weight its experts by a softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError

#: Names of routers, beside their ``experts``.
_ROUTERS = ("gate", "router")

#: Ends of the names of biases that select experts without weighting them.
_CORRECTIONS = ("score_correction_bias", "expert_bias")


def find_routers(network: nn.Module, patterns: Sequence[str] | None) -> dict[str, Any]:
    """Return the routers of a network by name.

    Raises:
        WeightspaceError: there are none, or one is not a matrix with or without a bias.
    """
    modules: Mapping[str, nn.Module] = dict(network.named_modules())
    if patterns is None:
        homes = ((name, *name.rpartition(".")[::2]) for name in modules)
        found = [name for name, home, last in homes if last in _ROUTERS and hasattr(modules[home], "experts")]
    else:
        found = [name for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if unused := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in modules)]:
            raise WeightspaceError(f"The network has no module {unused[0]!r}, which should be a router.")
    if not found:
        raise WeightspaceError(
            "The network has no module named gate or router beside its experts. Name its routers (routers=[…], or "
            "--routers)."
        )
    for name in found:
        _check_router(name, modules[name], modules[name.rpartition(".")[0]])
    return {name: modules[name] for name in found}


def _check_router(name: str, router: nn.Module, home: nn.Module) -> None:
    """Raise a WeightspaceError unless a module is a matrix with or without a bias that weights experts by a softmax."""
    parts = dict(router.named_parameters())
    weight, bias = parts.get("weight"), parts.get("bias")
    tensors = [*parts, *(one for one, _ in router.named_buffers()), *dict(home.named_buffers(recurse=False))]
    if corrections := [one for one in tensors if one.endswith(_CORRECTIONS)]:
        raise WeightspaceError(
            f"The router {name!r} selects experts by scores with {corrections[0]!r}, not by a softmax alone; it cannot "
            "be calibrated."
        )
    if parts.keys() - {"weight", "bias"} or weight is None or weight.ndim != 2:
        raise WeightspaceError(f"The router {name!r} has the parameters {', '.join(parts)}; expected a matrix.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise WeightspaceError(f"The router {name!r} has a bias of shape {tuple(bias.shape)}; expected one per expert.")


def check_softmax(name: str, router: Any, inputs: Tensor, output: Any) -> None:
    """Raise a WeightspaceError unless a router that weights experts itself does so by the softmax of its logits."""
    if type(router) is nn.Linear:
        return
    logits = router_inputs(router, inputs) @ router_matrix("", router, router.state_dict(prefix=".")).T
    parts = output if isinstance(output, tuple) else (output,)
    weights = [one for one in parts if isinstance(one, Tensor) and one.is_floating_point()]
    if any(_are_probabilities(one.flatten(0, -2).double(), logits.softmax(-1)) for one in weights if one.ndim > 1):
        return
    raise WeightspaceError(
        f"The router {name!r} ({type(router).__name__}) does not weight experts by a softmax of its logits; it cannot "
        "be calibrated."
    )


def _are_probabilities(weights: Tensor, probabilities: Tensor) -> bool:
    """Return whether weights are the largest probabilities of each row, up to a factor or divided by their sum."""
    chosen = weights.shape[-1]
    if len(weights) != len(probabilities) or chosen > probabilities.shape[-1] or not bool((weights > 0).all()):
        return False
    ratio = weights.sort(-1, descending=True).values / probabilities.topk(chosen).values
    factor = ratio[:1] if chosen == 1 else ratio[:, :1]
    return bool((weights == 1).all()) or torch.allclose(ratio, factor.expand_as(ratio), rtol=1e-2)


def bias_of(router: Any) -> Tensor | None:
    """Return the bias of a router, or None."""
    return getattr(router, "bias", None)


def router_inputs(router: Any, inputs: Tensor) -> Tensor:
    """Return inputs in float64, one per row, with a 1 for the bias."""
    rows = inputs.reshape(-1, inputs.shape[-1]).double()
    return rows if bias_of(router) is None else nn.functional.pad(rows, (0, 1), value=1.0)


def router_matrix(name: str, router: Any, state: StateDict) -> Tensor:
    """Return weight and bias of a router in a state as one float64 matrix ``(experts, width)``."""
    weight = state[f"{name}.weight"].double()
    return weight if bias_of(router) is None else torch.cat([weight, state[f"{name}.bias"].double()[:, None]], dim=1)


@contextmanager
def on_routers(routers: Mapping[str, Any], record: Callable[[str, Tensor, Any], None]) -> Iterator[None]:
    """Call ``record(name, inputs, output)`` after every run of a router inside the block."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        return lambda _, args, keywords, output: record(
            name, args[0] if args else next(iter(keywords.values())), output
        )

    handles = [router.register_forward_hook(hook(name), with_kwargs=True) for name, router in routers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
