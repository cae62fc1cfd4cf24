"""Verification of symmetry specs: the fold first, then a random element of all groups."""

from __future__ import annotations

import torch
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.errors import SpecError
from weightspace.symmetry.inputs import ExampleInputs, Inputs
from weightspace.symmetry.kinds.action import act_in_place
from weightspace.symmetry.kinds.balance import balance_in_place
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.fold import check_folded, fold_in_place
from weightspace.symmetry.kinds.in_float64 import InFloat64
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.module_copy import copy_module, keep_random_state
from weightspace.symmetry.permutation import check_fits
from weightspace.symmetry.verify import outputs, randomise, relative_change


def verify_symmetries(
    spec: SymmetrySpec, module: nn.Module, example_args: ExampleInputs, *, seed: int = 0
) -> tuple[float, float]:
    """Return how much folding, and balancing and a random element after it, change the outputs, computed in float64.

    Args:
        spec: the spec to test.
        module: a network that it should be valid for; not modified.
        example_args: example inputs, as for ``derive_spec``.
        seed: seed of the element and of the randomised weights.

    Returns:
        The two relative changes, ‖f(θ') − f(θ)‖ / ‖f(θ)‖.

    Raises:
        SpecError: the network has no floating-point output, or a non-finite one; it cannot be run in float64; or a
            norm cannot be folded.
        CheckpointError: the network's tensors don't fit the spec.
    """
    inputs = Inputs.of(example_args).double()
    with keep_random_state(module):
        probe = copy_module(module).train().eval()
        randomise(probe, seed)
        probe = probe.double()
        before = _outputs(probe, inputs, seed)
        state = _taken(probe, spec)
        fold_in_place(spec, state)
        _put(probe, state)
        after_fold = _outputs(probe, inputs, seed)
        check_folded(spec, state)
        balance_in_place(spec, state)
        moves = Element.random(spec, seed=seed).moves
        for name, tensor in state.items():
            act_in_place(spec, moves, name, tensor)
        _put(probe, state)
        after = _outputs(probe, inputs, seed)
    return relative_change(before, after_fold), relative_change(before, after)


def _outputs(module: nn.Module, inputs: Inputs, seed: int) -> torch.Tensor:
    torch.default_generator.manual_seed(seed)  # a network with noise draws the same each time
    try:
        with InFloat64():
            return outputs(copy_module(module, share_parameters=True), inputs)  # a copy: a call may leave a cache
    except RuntimeError as error:
        raise SpecError(
            f"{type(module).__name__} cannot be run in float64, in which signs and rotations are verified: "
            f"{str(error).splitlines()[0]}. verify=False skips the check."
        ) from error


def _taken(module: nn.Module, spec: SymmetrySpec) -> StateDict:
    """Return the tensors of a network by name, none of which share memory; its parameters are left without values."""
    named = module.state_dict(keep_vars=True)
    check_fits(spec, named, "The network")
    state: StateDict = {}
    seen: set[int] = set()
    for name, tensor in named.items():
        is_own = type(tensor) is nn.Parameter and id(tensor) not in seen
        state[name] = tensor.data if is_own else tensor.detach().clone()
        seen.add(id(tensor))
    for tensor in named.values():
        if type(tensor) is nn.Parameter:
            tensor.data = tensor.new_empty(0)
    return state


def _put(module: nn.Module, state: StateDict) -> None:
    """Give a network back the tensors that were taken from it; of tied ones the last counts."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if type(tensor) is nn.Parameter:
            tensor.data = state[name]
        else:
            tensor.detach().copy_(state[name])
