"""Verification of specs: permute every group at random and compare the outputs.

Weights that are constant along a permuted axis (unit norms, zero biases, layer scales) would hide a tensor that should
have been permuted, so they are randomised first, including running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.errors import SpecError
from weightspace.symmetry.buffers import moves_with_units
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.module_copy import copy_module, keep_random_state
from weightspace.symmetry.outputs import tensors_in
from weightspace.symmetry.permutation import Permutation, check_fits, permute_tensor
from weightspace.symmetry.spec import PermutationSpec
from weightspace.symmetry.verification import Verification

#: Largest relative change of the outputs that rounding can explain, by precision.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def verify_permutations(spec: PermutationSpec, module: nn.Module, inputs: Inputs, *, seed: int = 0) -> Verification:
    """Permute every group of a network at random and measure how much its outputs change; see ``verify_spec``."""
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
    before = outputs(copy_module(probe, share_parameters=True), inputs)  # a copy: the first call may leave a cache
    state = {name: tensor.detach() for name, tensor in probe.state_dict().items()}
    check_fits(spec, state, "The network")
    indices = Permutation.random(spec, seed=seed).indices
    for names in _by_memory(state):  # in place, since load_state_dict may be overridden or versioned
        moved = [permute_tensor(spec, indices, name, state[name]) for name in names]
        for name, tensor in zip(names, moved, strict=True):
            state[name].copy_(tensor)
    torch.default_generator.manual_seed(seed)
    return relative_change(before, outputs(probe, inputs)), before.dtype


def _by_memory(state: StateDict) -> list[list[str]]:
    """Return the names of the tensors, those that share memory together."""
    held: dict[int, list[str]] = {}
    for name, tensor in state.items():
        held.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return list(held.values())


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
