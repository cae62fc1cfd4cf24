"""Verification of specs: permute every group at random and compare the outputs.

Networks without values, on the meta device, are tested in float64 with random weights, one tensor at a time.
"""

from __future__ import annotations

import torch
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.module_copy import copy_module, keep_random_state
from weightspace.symmetry.outputs import output_vector, relative_change
from weightspace.symmetry.permutation import Permutation, check_fits, permute_tensor
from weightspace.symmetry.random_weights import randomise
from weightspace.symmetry.spec import PermutationSpec
from weightspace.symmetry.stand_ins import lacks_values
from weightspace.symmetry.streamed import StreamedNetwork
from weightspace.symmetry.verification import Verification

#: Largest relative change of the outputs that rounding can explain, by precision.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def verify_permutations(spec: PermutationSpec, module: nn.Module, inputs: Inputs, *, seed: int = 0) -> Verification:
    """Permute every group of a network at random and measure how much its outputs change; see ``verify_spec``."""
    if lacks_values(module):
        return _verify_streamed(spec, module, inputs.double(), seed)
    with keep_random_state(module):
        probe = copy_module(module).train().eval()  # networks that cache derived tables in eval mode drop them here
        randomise(probe, seed)
        error, dtype = _change(spec, probe, inputs, seed)
        if error > TOLERANCE.get(dtype, 1e-5) and dtype == torch.float32:
            error, dtype = _in_float64(spec, probe, inputs, seed) or (error, dtype)
    return Verification(error, len(spec.groups), spec.frozen, TOLERANCE.get(dtype, 1e-5))


def _verify_streamed(spec: PermutationSpec, module: nn.Module, inputs: Inputs, seed: int) -> Verification:
    """Verify the spec of a network that lacks values."""
    indices = Permutation.random(spec, seed=seed).indices
    with keep_random_state(module):
        network = StreamedNetwork(module, seed)
        check_fits(spec, network.state, "The network")
        before = network.outputs(network.random_weights, inputs)
        after = network.outputs(lambda name: permute_tensor(spec, indices, name, network.random_weights(name)), inputs)
    return Verification(relative_change(before, after), len(spec.groups), spec.frozen, TOLERANCE[torch.float64])


def _change(spec: PermutationSpec, probe: nn.Module, inputs: Inputs, seed: int) -> tuple[float, torch.dtype]:
    """Permute a network in place; return how much its outputs change, and their precision."""
    torch.default_generator.manual_seed(seed)  # a network with noise draws the same before and after
    # The first call may leave a cache, hence the copy.
    before = output_vector(copy_module(probe, share_parameters=True), inputs)
    state = {name: tensor.detach() for name, tensor in probe.state_dict().items()}
    check_fits(spec, state, "The network")
    indices = Permutation.random(spec, seed=seed).indices
    for names in _by_memory(state):  # in place, since load_state_dict may be overridden or versioned
        moved = [permute_tensor(spec, indices, name, state[name]) for name in names]
        for name, tensor in zip(names, moved, strict=True):
            state[name].copy_(tensor)
    torch.default_generator.manual_seed(seed)
    return relative_change(before, output_vector(probe, inputs)), before.dtype


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
