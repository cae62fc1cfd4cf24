"""The graph of a network: ``torch.export`` on a copy, with errors that say why it can't be traced."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import nn

from weightspace.errors import SpecError
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.module_copy import copy_module
from weightspace.symmetry.outputs import Network

#: Lines of the network's code in torch.export's report of a failed trace.
_CODE = re.compile(r"# File: (.+:\d+) in .*?, code: (.+)")


def export_graph(module: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """Trace a copy of a network in eval mode.

    Raises:
        SpecError: the network can't be copied, run or traced, or has tensors without values.
    """
    _check_values(module)
    _run(module, inputs)
    copied = copy_module(module, share_parameters=True)  # tracing computes with shapes and leaves values alone
    wrapped = Network(_with_legible_experts(copied)).train().eval()  # a call may leave a cache
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels are opaque to the graph
    printed = io.StringIO()
    try:
        with _silence(printed), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(wrapped, inputs.args, inputs.kwargs, strict=False)
            try:
                return program.run_decompositions({})
            except Exception:  # it fails on wrapped blocks (torch.autocast); the rules support composite operators too
                return program
    except Exception as error:  # the user's code and dynamo may raise anything
        raise _untraceable(module, error, printed.getvalue()) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _silence(printed: io.StringIO) -> Iterator[None]:
    """Capture torch.export's report of a failure, which is shown as one line, and suppress its logging."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(printed):
            yield
    finally:
        logger.setLevel(level)


def _untraceable(module: nn.Module, error: Exception, printed: str) -> SpecError:
    """Return the error that says why a network can't be traced, and what to do."""
    name = type(module).__name__
    if "data-dependent" not in str(error).lower():
        return SpecError(f"torch.export cannot trace {name}: {_first_line(error)}")
    places = _CODE.findall(printed)
    where = f" ({places[-1][0]}: {places[-1][1].strip()[:60]})" if places else ""
    return SpecError(
        f"torch.export cannot trace {name}: it branches on the values of its inputs{where}. Derive the spec "
        "from a copy of the network without that `if`, then verify it on this one: weightspace spec SPEC --network …, "
        "or load_spec(path, module, example_args)."
    )


def _check_values(module: nn.Module) -> None:
    """Raise a SpecError if a tensor of a network is on the meta device: constants decide what may be moved."""
    name = next((name for name, tensor in module.state_dict(keep_vars=True).items() if tensor.is_meta), None)
    if name is not None:
        raise SpecError(
            f"{name} of {type(module).__name__} is on the meta device, which has no values; expected a network with "
            "values, random ones for example: module.to_empty(device='cpu') leaves constants unset, so build it there."
        )


def _run(module: nn.Module, inputs: Inputs) -> None:
    """Call a copy of the network once: its own errors are clearer than those of tracing."""
    probe = copy_module(module).eval()
    try:
        with torch.no_grad():
            inputs.call(probe)
    except Exception as error:
        raise SpecError(
            f"{type(module).__name__} cannot run on its example inputs ({inputs.described()}): {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error


def _with_legible_experts(module: nn.Module) -> nn.Module:
    """Make the mixtures of experts of transformers look up the weights of the chosen experts, in place.

    Their other implementations (sorted and grouped products, a loop over the used experts) hide from the graph which
    weights belong to which expert.
    """
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            setattr(config, "_experts_implementation", "batched_mm")  # noqa: B010
    return module


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
