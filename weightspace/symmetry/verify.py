"""Verification of specs: permute every group at random and compare the outputs.

Weights that are constant along a permuted axis (unit norms, zero biases, layer scales) would hide a tensor that should
have been permuted, so they are randomised first, including running statistics.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.errors import SpecError
from weightspace.symmetry.buffers import moves_with_units
from weightspace.symmetry.inputs import ExampleInputs, Inputs
from weightspace.symmetry.module_copy import copy_module, keep_random_state
from weightspace.symmetry.outputs import tensors_in
from weightspace.symmetry.permutation import Permutation, permute
from weightspace.symmetry.spec import PermutationSpec, Verification, read_spec
from weightspace.symmetry.trace import trace_spec

_log = logging.getLogger(__name__)

#: Largest relative change of the outputs that rounding can explain, by precision.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@checked
def derive_spec(module: nn.Module, example_args: ExampleInputs, *, verify: bool = True) -> PermutationSpec:
    """Derive which hidden units of a network may be permuted together, and verify it.

    Args:
        module: any network that ``torch.export`` can trace; not modified.
        example_args: example inputs: a tuple of positional arguments, a mapping of keyword arguments (such as a batch
            of a Hugging Face tokenizer), or one tensor.
        verify: whether to permute every group at random and compare the outputs before returning.

    Returns:
        A spec for every checkpoint of this architecture.

    Raises:
        SpecError: the network can't be traced, or the derived spec changes its function.

    Source:
        Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836, for the idea of a spec as data.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 2)
        >>> network = torch.nn.Sequential(*layers)
        >>> spec = ws.derive_spec(network, (torch.zeros(1, 3, 4, 4),))
        >>> list(spec.groups.values()), spec.verification.passed
        ([8], True)
    """
    inputs = Inputs.of(example_args)
    spec = trace_spec(module, inputs)
    if not verify:
        return spec
    verification = verify_spec(spec, module, inputs)
    if not verification.passed:
        raise SpecError(
            f"The spec derived for {type(module).__name__} changes its output by {verification.error:.2g} (relative; "
            f"at most {verification.tolerance:g} is allowed). Please report this network; verify=False skips the check."
        )
    _log.info("%s: %d groups, verified to %.1e", type(module).__name__, len(spec.groups), verification.error)
    return replace(spec, verification=verification)


@checked
def load_spec(path: str | Path, module: nn.Module, example_args: ExampleInputs) -> PermutationSpec:
    """Read a spec that was edited or comes from elsewhere, and verify it on a network.

    Args:
        path: a YAML file.
        module: a network that the spec should be valid for; not modified.
        example_args: example inputs: a tuple of positional arguments, a mapping of keyword arguments (such as a batch
            of a Hugging Face tokenizer), or one tensor.

    Raises:
        SpecError: the file isn't a spec, or permuting by it changes the network's output.
        CheckpointError: the network's tensors don't fit the spec.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> ws.derive_spec(network, (torch.zeros(1, 4),)).save("spec.yaml")
        >>> spec = ws.load_spec("spec.yaml", network, (torch.zeros(1, 4),))  # after it was edited, say
        >>> spec.verification.passed
        True
    """
    spec, _ = read_spec(path)
    verification = verify_spec(spec, module, example_args)
    if not verification.passed:
        raise SpecError(
            f"{path}: permuting by this spec changes the network's output by {verification.error:.2g} "
            f"(relative; at most {verification.tolerance:g} is allowed), so the spec is wrong for it."
        )
    return replace(spec, verification=verification)


@checked
def verify_spec(
    spec: PermutationSpec, module: nn.Module, example_args: ExampleInputs, *, seed: int = 0
) -> Verification:
    """Permute every group of a network at random and measure how much its outputs change.

    Args:
        spec: the spec to test.
        module: a network that it should be valid for; not modified.
        example_args: example inputs: a tuple of positional arguments, a mapping of keyword arguments (such as a batch
            of a Hugging Face tokenizer), or one tensor.
        seed: seed of the permutation and of the randomised weights.

    Returns:
        The relative change of the outputs, which should be below 1e-5 in float32.

    Raises:
        CheckpointError: the network's tensors don't fit the spec.
        SpecError: the network has no floating-point output, or a non-finite one.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> inputs = (torch.zeros(1, 4),)
        >>> spec = ws.derive_spec(network, inputs)
        >>> ws.verify_spec(spec, network, inputs).passed
        True
    """
    inputs = Inputs.of(example_args)
    with keep_random_state(module):
        probe = copy_module(module).train().eval()  # networks that cache derived tables in eval mode drop them here
        randomise(probe, seed)
        error, dtype = _change(spec, probe, inputs, seed)
        if error > TOLERANCE.get(dtype, 1e-5) and dtype == torch.float32:
            error, dtype = _in_float64(spec, probe, inputs, seed) or (error, dtype)
    return Verification(error, len(spec.groups), spec.frozen, TOLERANCE.get(dtype, 1e-5))


def _change(spec: PermutationSpec, probe: nn.Module, inputs: Inputs, seed: int) -> tuple[float, torch.dtype]:
    """Permute a network in place; return how much its outputs change, and their precision."""
    torch.default_generator.manual_seed(seed)  # a network with noise draws the same before and after
    before = outputs(copy_module(probe), inputs)  # a copy, since the first call may leave a cache
    state = {name: tensor.detach() for name, tensor in probe.state_dict().items()}
    permuted = permute(spec, Permutation.random(spec, seed=seed), state)
    with torch.no_grad():  # in place, since load_state_dict may be overridden or versioned
        for name, tensor in probe.state_dict().items():
            tensor.copy_(permuted[name])
    torch.default_generator.manual_seed(seed)
    return relative_change(before, outputs(probe, inputs)), before.dtype


def _in_float64(spec: PermutationSpec, probe: nn.Module, inputs: Inputs, seed: int) -> tuple[float, torch.dtype] | None:
    """Repeat the check in float64: a deep random network can exceed the tolerance of float32 by rounding alone."""
    try:
        return _change(spec, probe.double(), inputs.double(), seed)
    except RuntimeError:  # part of the network requires float32
        return None


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return ‖after − before‖ / ‖before‖ in float64."""
    difference = (after.double() - before.double()).norm()
    return float((difference / before.double().norm().clamp_min(1e-300)).detach())


def outputs(module: nn.Module, inputs: Inputs) -> Tensor:
    """Return all floating-point outputs of a network as one vector."""
    with torch.no_grad():
        listed = list(tensors_in(inputs.call(module)))
    flat = [tensor.flatten() for tensor in listed if tensor.is_floating_point()]
    if not flat:
        raise SpecError(f"{type(module).__name__} returns no floating-point tensor to verify a spec with.")
    joined = torch.cat(flat)
    if not bool(joined.isfinite().all()):
        raise SpecError(f"{type(module).__name__} returns non-finite values, so no spec can be verified.")
    return joined


def randomise(module: nn.Module, seed: int) -> None:
    """Randomise every tensor that is constant along an axis, and all running statistics, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in _distinct(module):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            elif name.endswith("running_mean"):
                tensor.copy_(noise * 0.1)
            elif _is_constant_somewhere(tensor):
                typical = tensor.abs().mean() or torch.tensor(0.1)
                tensor.add_(noise * 0.3 * typical.clamp_min(0.1).double())


def _distinct(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    parameters = dict(module.named_parameters())
    yield from parameters.items()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if moves_with_units(name, parameters))


def _is_constant_somewhere(tensor: Tensor) -> bool:
    return any(size > 1 and bool((tensor == tensor.narrow(axis, 0, 1)).all()) for axis, size in enumerate(tensor.shape))
