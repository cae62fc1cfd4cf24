"""Permutation specs: which axes of which tensors share one hidden permutation.

A spec is data. It holds for every checkpoint of its architecture and is saved as YAML that a person can read and
edit; a file whose digest no longer fits its content is refused until it is verified against a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from weightspace.checkpoints.disk import replacing_file
from weightspace.errors import SpecError
from weightspace.symmetry.pattern import Pattern, format_axes, parse_axes, size_of, units_in

_FORMAT = 1
_HEADER = """\
# Which axes of which tensors share a hidden permutation. An axis is a group, a number of fixed units, a product
# (group 49), an end-to-end sum (a + b), or (outer [inner]): an own permutation of inner for each unit of outer.
"""


@dataclass(frozen=True)
class Verification:
    """What came of permuting every group at random.

    Attributes:
        error: relative change of the outputs, ‖f(π(θ)) − f(θ)‖ / ‖f(θ)‖.
        groups: number of groups that were permuted.
        frozen: as in the spec.
        tolerance: the largest error that passes.
    """

    error: float
    groups: int
    frozen: tuple[str, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the function stayed the same."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class PermutationSpec:
    """The hidden symmetries of an architecture.

    Attributes:
        groups: free groups of two units and more, name -> number of units; of an inner group, the number for each
            unit of its outer group.
        outer: inner group -> the group each of whose units has its own permutation of it.
        axes: tensor -> one pattern an axis.
        statistics: tensors that are carried along but do not count in a matching (running statistics, counters).
        frozen: what cost the network symmetries, each an operator (or a buffer) and the tensors whose units it froze:
            one without a rule, or one that depends on the order of the units or tells each of them apart.
        verification: the check that the spec passed, or None.
    """

    groups: Mapping[str, int]
    axes: Mapping[str, tuple[Pattern, ...]]
    outer: Mapping[str, str] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()
    frozen: tuple[str, ...] = ()
    verification: Verification | None = None

    def __post_init__(self) -> None:
        for tensor, axes in self.axes.items():
            for axis in axes:
                for units in units_in(axis):
                    if units.group not in self.groups:
                        raise SpecError(f"{tensor!r} names group {units.group!r}, which the spec does not have.")
                    if units.inner != (units.group in self.outer):
                        raise SpecError(
                            f"{tensor!r} writes group {units.group!r} {'with' if units.inner else 'without'} "
                            "square brackets; inner groups, and only they, take them."
                        )
        for inner, outer in self.outer.items():
            if inner not in self.groups or outer not in self.groups or outer in self.outer:
                raise SpecError(f"Group {inner!r} cannot be inside {outer!r}: both must be groups, one deep.")

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape that the spec expects of a tensor."""
        return tuple(size_of(axis, self.groups) for axis in self.axes[tensor])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes and patterns; the same for every derivation of an architecture."""
        return _sha256(_content(self))

    def save(self, path: str | Path) -> None:
        """Write the spec as YAML, atomically."""
        document = _content(self) | {"frozen": list(self.frozen), "verification": _record(self.verification)}
        document["digest"] = _sha256(document)
        text = _HEADER + yaml.safe_dump(document, sort_keys=False, width=110)
        with replacing_file(Path(path)) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, path: str | Path) -> PermutationSpec:
        """Read a spec that was verified and has not been touched since; ``load_spec`` reads any other.

        Raises:
            SpecError: the file is not a spec, or it was edited, comes from elsewhere or was never verified.
        """
        spec, untouched = read_spec(path)
        if not untouched:
            raise SpecError(
                f"{path}: the digest does not fit the content, so the file was edited or comes from elsewhere. "
                "Give the network to verify it with (--network, or load_spec(path, module, example_args))."
            )
        if spec.verification is None or not spec.verification.passed:
            raise SpecError(
                f"{path}: this spec was never verified. Give the network to verify it with (--network, or "
                "load_spec(path, module, example_args))."
            )
        return spec


def read_spec(path: str | Path) -> tuple[PermutationSpec, bool]:
    """Read a spec as it stands, and whether its digest fits it.

    Raises:
        SpecError: the file is not a spec.
    """
    document = _read(path)
    seal = document.pop("digest", None)
    return _build(document, path), seal == _sha256(document)


def _content(spec: PermutationSpec) -> dict[str, Any]:
    groups = {
        name: {"size": size, "inside": spec.outer[name]} if name in spec.outer else size
        for name, size in spec.groups.items()
    }
    return {
        "weightspace_spec": _FORMAT,
        "groups": groups,
        "tensors": {name: format_axes(axes) for name, axes in spec.axes.items()},
        "statistics": sorted(spec.statistics),
    }


def _record(verification: Verification | None) -> dict[str, Any] | None:
    if verification is None:
        return None
    return {
        "error": verification.error,
        "tolerance": verification.tolerance,
        "groups": verification.groups,
    }


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: str | Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(document, dict) or document.get("weightspace_spec") != _FORMAT:
        raise SpecError(f"{path}: not a permutation spec (no 'weightspace_spec: {_FORMAT}' in it).")
    return document


def _build(document: Mapping[str, Any], path: str | Path) -> PermutationSpec:
    try:
        listed: dict[str, Any] = document["groups"]
        sizes = {name: entry["size"] if isinstance(entry, dict) else entry for name, entry in listed.items()}
        if bad := [name for name, size in sizes.items() if not isinstance(size, int) or size < 1]:
            raise SpecError(f"{path}: group {bad[0]!r} has no positive number of units.")
        record = document.get("verification")
        frozen = tuple(document.get("frozen", ()))
        return PermutationSpec(
            groups=sizes,
            axes={name: parse_axes(text) for name, text in document["tensors"].items()},
            outer={name: entry["inside"] for name, entry in listed.items() if isinstance(entry, dict)},
            statistics=frozenset(document.get("statistics", ())),
            frozen=frozen,
            verification=record and Verification(frozen=frozen, **record),
        )
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path}: not a permutation spec ({type(error).__name__}: {error}).") from error
