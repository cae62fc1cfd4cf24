"""Permutation symmetry: specs derived from a network and verified, permutations, and their application to tensors."""

from weightspace.symmetry.permutation import (
    Permutation,
    check_fits,
    check_named_tensors,
    check_permutation_path,
    permute,
)
from weightspace.symmetry.spec import PermutationSpec, Verification
from weightspace.symmetry.verify import derive_spec, load_spec, verify_spec

__all__ = [
    "Permutation",
    "PermutationSpec",
    "Verification",
    "check_fits",
    "check_named_tensors",
    "check_permutation_path",
    "derive_spec",
    "load_spec",
    "permute",
    "verify_spec",
]
