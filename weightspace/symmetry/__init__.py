"""Symmetries of networks: specs derived from a network and verified, and maps of units, applied to tensors."""

from weightspace.symmetry.kinds.canonicalise import canonicalise
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.fold import fold
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.kinds.verified import derive_spec, load_spec, verify_spec
from weightspace.symmetry.permutation import (
    Permutation,
    check_fits,
    check_named_tensors,
    check_permutation_path,
    permute,
)
from weightspace.symmetry.spec import PermutationSpec
from weightspace.symmetry.verification import Verification

__all__ = [
    "Element",
    "Permutation",
    "PermutationSpec",
    "SymmetrySpec",
    "Verification",
    "canonicalise",
    "check_fits",
    "check_named_tensors",
    "check_permutation_path",
    "derive_spec",
    "fold",
    "load_spec",
    "permute",
    "verify_spec",
]
