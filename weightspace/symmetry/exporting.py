"""The graph of a network, by ``torch.export``."""

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
from weightspace.symmetry.copying import copy_module
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.outputs import Network

#: What torch.export prints of a graph that it could not finish: the lines of the network's code behind it.
_CODE = re.compile(r"# File: (.+:\d+) in .*?, code: (.+)")


def export_graph(module: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """Trace a copy of a network in eval mode.

    Raises:
        SpecError: the network cannot be copied, run or traced.
    """
    _run(module, inputs)
    wrapped = Network(_with_legible_experts(copy_module(module))).train().eval()  # a call may leave a cache behind
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels that no graph shows
    printed = io.StringIO()
    try:
        with _silence(printed), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(wrapped, inputs.args, inputs.kwargs, strict=False)
            try:
                return program.run_decompositions({})
            except Exception:  # it trips over wrapped blocks (torch.autocast); the rules know composite operators too
                return program
    except Exception as error:  # torch.export raises whatever the user's code and dynamo raise
        raise _untraceable(module, error, printed.getvalue()) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _silence(printed: io.StringIO) -> Iterator[None]:
    """Keep what torch.export prints of a failure, which is told in one line, and let it log nothing of it."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(printed):
            yield
    finally:
        logger.setLevel(level)


def _untraceable(module: nn.Module, error: Exception, printed: str) -> SpecError:
    """Return the line that says why a network has no graph, and what to do."""
    name = type(module).__name__
    if "data-dependent" not in str(error).lower():
        return SpecError(f"torch.export cannot trace {name}: {_first_line(error)}")
    places = _CODE.findall(printed)
    where = f" ({places[-1][0]}: {places[-1][1].strip()[:60]})" if places else ""
    return SpecError(
        f"torch.export cannot trace {name}: what it does depends on the values of its inputs{where}. Derive the spec "
        "from a copy of the network without that `if`, then verify it on this one: weightspace spec SPEC --network …, "
        "or load_spec(path, module, example_args)."
    )


def _run(module: nn.Module, inputs: Inputs) -> None:
    """Call a copy of the network once: its own mistakes are told more plainly than those of its trace."""
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
