"""The graph of a network: ``torch.export`` on a copy, with errors that say why it can't be traced."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from weightspace.errors import SpecError
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.module_copy import copy_module
from weightspace.symmetry.outputs import Network
from weightspace.symmetry.stand_ins import lacks_values, shape_copy, with_legible_experts

#: Lines of the network's code in torch.export's report of a failed trace.
_CODE = re.compile(r"# File: (.+:\d+) in .*?, code: (.+)")

#: Loggers of torch that repeat an error that is raised.
_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")


def export_graph(module: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """Trace a copy of a network in eval mode.

    Raises:
        SpecError: the network can't be copied, run or traced.
    """
    _run(module, inputs)
    wrapped = Network(_traceable_copy(module)).train().eval()  # a call may leave a cache
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
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(printed):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
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


def _run(module: nn.Module, inputs: Inputs) -> None:
    """Call a copy of the network once: its own errors are clearer than those of tracing."""
    if lacks_values(module):
        probe, mode = shape_copy(module)
        quiet = _silence(io.StringIO())
    else:
        probe, mode, quiet = copy_module(module), nullcontext(), nullcontext()
    try:
        with torch.no_grad(), quiet, mode:
            inputs.call(probe.eval())
    except (DataDependentOutputException, DynamicOutputShapeException):
        return  # needs values, but torch.export may know how to trace it
    except Exception as error:
        raise SpecError(
            f"{type(module).__name__} cannot run on its example inputs ({inputs.described()}): {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error


def _traceable_copy(module: nn.Module) -> nn.Module:
    """Return a copy to be traced with shapes only, whose values are not read or changed."""
    if lacks_values(module):
        return shape_copy(module)[0]
    return with_legible_experts(copy_module(module, share_parameters=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
