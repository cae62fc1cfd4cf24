"""The graph of a network, by ``torch.export``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.symmetry.copying import copy_module
from weightspace.symmetry.outputs import Network


def export_graph(module: nn.Module, example_args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Trace a copy of a network in eval mode.

    Raises:
        SpecError: the network cannot be copied, run or traced.
    """
    if not isinstance(example_args, tuple):
        raise SpecError(f"example_args must be a tuple of inputs, got {type(example_args).__name__}.")
    _run(module, example_args)
    wrapped = Network(_with_legible_experts(copy_module(module))).train().eval()  # a call may leave a cache behind
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels that no graph shows
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(wrapped, example_args, strict=False)
            try:
                return program.run_decompositions({})
            except Exception:  # it trips over wrapped blocks (torch.autocast); the rules know composite operators too
                return program
    except Exception as error:  # torch.export raises whatever the user's code and dynamo raise
        raise SpecError(f"torch.export cannot trace {type(module).__name__}: {_first_line(error)}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _run(module: nn.Module, example_args: tuple[Any, ...]) -> None:
    """Call a copy of the network once: its own mistakes are told more plainly than those of its trace."""
    probe = copy_module(module).eval()
    try:
        with torch.no_grad():
            probe(*example_args)
    except Exception as error:
        name = type(module).__name__
        shapes = ", ".join(str(tuple(arg.shape)) for arg in example_args if isinstance(arg, Tensor)) or "no tensors"
        raise SpecError(
            f"{name} cannot run on its example inputs ({shapes}): {type(error).__name__}: {_first_line(error)}"
        ) from error


def _with_legible_experts(module: nn.Module) -> nn.Module:
    """Let the mixtures of experts of transformers look up the weights of the chosen experts, in place.

    Their other ways of computing the same (sorted and grouped products, a loop over the experts that were hit) hide
    from a graph which expert is whose.
    """
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            setattr(config, "_experts_implementation", "batched_mm")  # noqa: B010
    return module


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
