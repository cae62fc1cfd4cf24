"""Verification of symmetry specs: the fold first, then a random element of all groups."""

from __future__ import annotations

import torch
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.errors import SpecError
from weightspace.symmetry.inputs import ExampleInputs, Inputs
from weightspace.symmetry.kinds.balance import balance
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.fold import fold
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
        before = _outputs(copy_module(probe), inputs, seed)
        state = {name: tensor.detach() for name, tensor in probe.state_dict().items()}
        check_fits(spec, state, "The network")
        folded = fold(spec, state)
        after_fold = _outputs(_with(probe, folded), inputs, seed)
        moved = Element.random(spec, seed=seed).apply(balance(spec, folded))
        after = _outputs(_with(probe, moved), inputs, seed)
    return relative_change(before, after_fold), relative_change(before, after)


def _outputs(module: nn.Module, inputs: Inputs, seed: int) -> torch.Tensor:
    torch.default_generator.manual_seed(seed)  # a network with noise draws the same each time
    try:
        with InFloat64():
            return outputs(module, inputs)
    except RuntimeError as error:
        raise SpecError(
            f"{type(module).__name__} cannot be run in float64, in which signs and rotations are verified: "
            f"{str(error).splitlines()[0]}. verify=False skips the check."
        ) from error


def _with(module: nn.Module, state: StateDict) -> nn.Module:
    copied = copy_module(module)
    with torch.no_grad():
        for name, tensor in copied.state_dict().items():
            tensor.copy_(state[name])
    return copied
