"""Verified specs of either kind: derived from a network, read from a file, or tested."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, overload

import torch
from torch import nn

from weightspace.arguments import checked
from weightspace.errors import SpecError
from weightspace.symmetry.inputs import ExampleInputs, Inputs
from weightspace.symmetry.kinds.canonical_weights import CanonicalWeights
from weightspace.symmetry.kinds.derive import trace_signs, trace_symmetries
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec, symmetries_in
from weightspace.symmetry.module_copy import keep_random_state
from weightspace.symmetry.outputs import relative_change
from weightspace.symmetry.permutation import check_fits
from weightspace.symmetry.spec import PermutationSpec, more_than_permuted, permutations_in
from weightspace.symmetry.spec_file import check_trusted, read_document
from weightspace.symmetry.stand_ins import check_constants
from weightspace.symmetry.streamed import StreamedNetwork
from weightspace.symmetry.trace import trace_spec
from weightspace.symmetry.verification import Verification
from weightspace.symmetry.verify import TOLERANCE, verify_permutations

_log = logging.getLogger(__name__)

#: Symmetries that a derivation looks for.
Symmetry: TypeAlias = Literal["permutations", "signed", "full"]

SYMMETRIES: tuple[Symmetry, ...] = ("permutations", "signed", "full")


@overload
def derive_spec(
    module: nn.Module,
    example_args: ExampleInputs,
    *,
    symmetry: Literal["permutations"] = "permutations",
    verify: bool = True,
) -> PermutationSpec: ...
@overload
def derive_spec(
    module: nn.Module, example_args: ExampleInputs, *, symmetry: Literal["signed", "full"], verify: bool = True
) -> SymmetrySpec: ...
@checked
def derive_spec(
    module: nn.Module, example_args: ExampleInputs, *, symmetry: Symmetry = "permutations", verify: bool = True
) -> PermutationSpec | SymmetrySpec:
    """Derive how the hidden units of a network may be moved without changing its function, and verify it.

    Args:
        module: any network that ``torch.export`` can trace; not modified. It may be on the meta device, with shapes
            but no values; it is then verified with random weights, only a few of which are held at a time.
        example_args: example inputs: a tuple of positional arguments, a mapping of keyword arguments (such as a batch
            of a Hugging Face tokenizer), or one tensor.
        symmetry: ``"permutations"``; ``"signed"``: permutations with signs, where odd activations, RMSNorm or products
            allow them; or ``"full"``: orthogonal maps and phases as well, after gains of norms are folded into the
            layers that read them. Groups that allow less fall back to signs or permutations one by one, and
            ``frozen`` has the reasons.
        verify: whether to move every group at random and compare the outputs before returning.

    Returns:
        A spec for every checkpoint of this architecture: a ``PermutationSpec``, or for ``"signed"`` and ``"full"`` a
        ``SymmetrySpec``, which is verified in float64.

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
        >>> ws.derive_spec(network, (torch.zeros(1, 3, 4, 4),), symmetry="full").frozen
        ('layer.0: only permuted, because relu does not commute with rotations',)
    """
    if symmetry not in SYMMETRIES:
        raise SpecError(f"derive_spec: symmetry is {symmetry!r}; expected one of {', '.join(map(repr, SYMMETRIES))}.")
    inputs = Inputs.of(example_args)
    if symmetry == "permutations":
        spec = trace_spec(module, inputs)
    else:
        spec = trace_symmetries(module, inputs) if symmetry == "full" else trace_signs(module, inputs)
    if not verify:
        return spec
    verification = verify_spec(spec, module, inputs)
    if not verification.passed:
        check_constants(module)
        raise SpecError(
            f"The spec derived for {type(module).__name__} changes its output by {verification.error:.2g} (relative; "
            f"at most {verification.tolerance:g} is allowed). Please report this network; verify=False skips the check."
        )
    _log.info("%s: %d groups, verified to %.1e", type(module).__name__, len(spec.groups), verification.error)
    return replace(spec, verification=verification)


def read_spec(path: str | Path) -> tuple[PermutationSpec | SymmetrySpec, bool]:
    """Read a spec as is, and whether its digest matches; groups with kinds make it a ``SymmetrySpec``.

    Raises:
        SpecError: the file isn't a spec.
    """
    document, untouched = read_document(path)
    read = symmetries_in if more_than_permuted(document) else permutations_in
    return read(document, path), untouched


def load_verified(path: str | Path) -> PermutationSpec | SymmetrySpec:
    """Read a spec of either kind that was verified and not modified since.

    Raises:
        SpecError: the file isn't a spec, or it was edited, comes from elsewhere or was never verified.
    """
    spec, untouched = read_spec(path)
    check_trusted(spec, path, untouched=untouched)
    return spec


@checked
def load_spec(path: str | Path, module: nn.Module, example_args: ExampleInputs) -> PermutationSpec | SymmetrySpec:
    """Read a spec that was edited or comes from elsewhere, and verify it on a network.

    Args:
        path: a YAML file.
        module: a network that the spec should be valid for, which may be on the meta device; not modified.
        example_args: example inputs: a tuple of positional arguments, a mapping of keyword arguments (such as a batch
            of a Hugging Face tokenizer), or one tensor.

    Returns:
        A ``PermutationSpec``, or a ``SymmetrySpec`` if the file gives groups their kinds.

    Raises:
        SpecError: the file isn't a spec, or moving units by it changes the network's output.
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
        check_constants(module)
        moving = "permuting by this spec" if isinstance(spec, PermutationSpec) else "moving units by this spec"
        raise SpecError(
            f"{path}: {moving} changes the network's output by {verification.error:.2g} "
            f"(relative; at most {verification.tolerance:g} is allowed), so the spec is wrong for it."
        )
    return replace(spec, verification=verification)


@checked
def verify_spec(
    spec: PermutationSpec | SymmetrySpec, module: nn.Module, example_args: ExampleInputs, *, seed: int = 0
) -> Verification:
    """Move every group of a network at random and measure how much its outputs change.

    Args:
        spec: the spec to test. Of a ``SymmetrySpec``, the folds are tested first, then a random element after them.
        module: a network that it should be valid for, which may be on the meta device; not modified.
        example_args: example inputs: a tuple of positional arguments, a mapping of keyword arguments (such as a batch
            of a Hugging Face tokenizer), or one tensor.
        seed: seed of the random maps and of the randomised weights.

    Returns:
        The relative change of the outputs, which should be below 1e-5 in float32 for a ``PermutationSpec``, and below
        1e-10 in float64 for a ``SymmetrySpec`` (the larger one of the two tests).

    Raises:
        CheckpointError: the network's tensors don't fit the spec.
        SpecError: the network has no floating-point output, or a non-finite one; or a norm cannot be folded.

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
    if isinstance(spec, PermutationSpec):
        return verify_permutations(spec, module, inputs, seed=seed)
    error = max(verify_symmetries(spec, module, inputs, seed=seed))
    return Verification(error, len(spec.groups), spec.frozen, TOLERANCE[torch.float64])


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
