"""Permutation specs: which axes of which tensors share one hidden permutation.

A spec is data. It is valid for every checkpoint of its architecture and saved as readable, editable YAML; a file whose
digest no longer matches its content is refused until it is verified against a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weightspace.errors import SpecError
from weightspace.reprs import brief
from weightspace.symmetry.pattern import Pattern, size_of, units_in
from weightspace.symmetry.spec_file import (
    check_groups,
    check_sizes,
    check_trusted,
    digest_of,
    naming,
    read_document,
    shared_content,
    shared_fields,
    write_spec,
)
from weightspace.symmetry.verification import Verification

_HEADER = """\
# Which axes of which tensors share a hidden permutation. An axis is a group, a number of fixed units, a product
# (group 49), a concatenation (a + b), or (outer [inner]): a separate permutation of inner for each unit of outer.
"""


@brief
@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of an architecture.

    Attributes:
        groups: free groups of at least two units, name -> number of units; for an inner group, the number per unit of
            its outer group.
        outer: inner group -> its outer group, each of whose units has a separate permutation of the inner group.
        axes: tensor -> one pattern per axis.
        statistics: tensors that are permuted with the others but ignored in matching (running statistics, counters).
        frozen: lost symmetries, each an operator (or a buffer) and the tensors whose units it froze: an operator
            without a rule, or one that depends on the order of the units or distinguishes them.
        verification: the check that the spec passed, or None.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.zeros(1, 4),))
        >>> dict(spec.groups), spec.shape("0.weight")
        ({'layer.0': 8}, (8, 4))
        >>> spec.save("spec.yaml")
        >>> ws.PermutationSpec.load("spec.yaml").digest == spec.digest
        True
    """

    groups: Mapping[str, int]
    axes: Mapping[str, tuple[Pattern, ...]]
    outer: Mapping[str, str] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()
    frozen: tuple[str, ...] = ()
    verification: Verification | None = None

    def __post_init__(self) -> None:
        check_groups(self)
        for tensor, axes in self.axes.items():
            for units in (units for axis in axes for units in units_in(axis)):
                if units.signed or units.dual:
                    raise SpecError(
                        f"{tensor!r} marks group {units.group!r} with {'±' if units.signed else '*'}, but the units of "
                        "a permutation spec are only permuted. Leave the mark out, or give the groups their kinds."
                    )

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the expected shape of a tensor."""
        return tuple(size_of(axis, self.groups) for axis in self.axes[tensor])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes and patterns; the same for every derivation of an architecture."""
        return digest_of(shared_content(self))

    def save(self, path: str | Path) -> None:
        """Write the spec as YAML, atomically."""
        write_spec(path, _HEADER, shared_content(self), self)

    @classmethod
    def load(cls, path: str | Path) -> PermutationSpec:
        """Read a spec that was verified and not modified since; ``load_spec`` reads any other.

        Raises:
            SpecError: the file isn't a spec, or it was edited, comes from elsewhere or was never verified; or it
                holds groups that are more than permuted.
        """
        document, untouched = read_document(path)
        _check(document, path)
        spec = permutations_in(document, path)
        check_trusted(spec, path, untouched=untouched)
        return spec


def permutations_in(document: Mapping[str, Any], path: str | Path) -> PermutationSpec:
    """Return the permutation spec that the document of a file describes.

    Raises:
        SpecError: it makes no sense.
    """
    with naming(path):
        spec = PermutationSpec(**shared_fields(document))
        check_sizes(spec)
        return spec


def more_than_permuted(document: Mapping[str, Any]) -> bool:
    """Return whether the document of a file gives groups their kinds, or has folds."""
    groups = document.get("groups")
    entries = groups.values() if isinstance(groups, dict) else ()
    return "folds" in document or any(isinstance(entry, dict) and "kind" in entry for entry in entries)


def check_permutations(path: str | Path) -> None:
    """Refuse a file whose groups are more than permuted.

    Raises:
        SpecError: the file isn't a spec, or it has groups of other kinds.
    """
    _check(read_document(path)[0], path)


def _check(document: Mapping[str, Any], path: str | Path) -> None:
    """Refuse the document of a file whose groups are more than permuted."""
    if not more_than_permuted(document):
        return
    groups = document.get("groups")
    entries = groups.values() if isinstance(groups, dict) else ()
    kinds = dict.fromkeys(str(entry["kind"]) for entry in entries if isinstance(entry, dict) and "kind" in entry)
    larger = [kind for kind in kinds if kind != "permutation"]
    raise SpecError(
        f"{path} holds {' and '.join(larger) + ' groups' if larger else 'a symmetry spec'}, but only permutations can "
        "be used here. Derive a spec without --symmetry (derive_spec without symmetry=…)."
    )
