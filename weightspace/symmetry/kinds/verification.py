"""Verification of symmetry specs: the fold first, then a random element of all groups.

The network runs in float64 with weights that are computed on use, so that only a few are held at a time.
"""

from __future__ import annotations

from torch import nn

from weightspace.symmetry.inputs import ExampleInputs, Inputs
from weightspace.symmetry.kinds.canonical_weights import CanonicalWeights
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.module_copy import keep_random_state
from weightspace.symmetry.outputs import relative_change
from weightspace.symmetry.permutation import check_fits
from weightspace.symmetry.streamed import StreamedNetwork


def verify_symmetries(
    spec: SymmetrySpec, module: nn.Module, example_args: ExampleInputs, *, seed: int = 0
) -> tuple[float, float]:
    """Return how much folding, and balancing and a random element after it, change the outputs, computed in float64.

    Args:
        spec: the spec to test.
        module: a network that it should be valid for, which may be on the meta device; not modified.
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
        network = StreamedNetwork(module, seed)
        check_fits(spec, network.state, "The network")
        weights = network.random_weights
        before = network.outputs(weights, inputs)
        folded = CanonicalWeights(spec, weights, balance=False)
        after_fold = network.outputs(folded.__getitem__, inputs)
        moved = CanonicalWeights(spec, weights, moves=Element.random(spec, seed=seed).moves)
        after = network.outputs(moved.__getitem__, inputs)
    return relative_change(before, after_fold), relative_change(before, after)
