"""Permutation specs: which axes of which tensors share one hidden permutation.

A spec is data. It is valid for every checkpoint of its architecture and saved as readable, editable YAML; a file whose
digest no longer matches its content is refused until it is verified against a network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.checkpoints.file_format import is_checkpoint
from weightspace.checkpoints.yaml_file import read_yaml
from weightspace.errors import SpecError, WeightspaceError
from weightspace.reprs import brief
from weightspace.symmetry.pattern import MAX_UNITS, Pattern, format_axes, parse_axes, size_of, units_in

_FORMAT = 1
_HEADER = """\
# Which axes of which tensors share a hidden permutation. An axis is a group, a number of fixed units, a product
# (group 49), a concatenation (a + b), or (outer [inner]): a separate permutation of inner for each unit of outer.
"""


@brief
@dataclass(frozen=True)
class Verification:
    """The result of permuting every group at random.

    Attributes:
        error: relative change of the outputs, ‖f(π(θ)) − f(θ)‖ / ‖f(θ)‖.
        groups: number of permuted groups.
        frozen: as in the spec.
        tolerance: the largest error that passes.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> verification = ws.derive_spec(network, (torch.zeros(1, 4),)).verification
        >>> verification.passed, verification.groups, verification.error < verification.tolerance
        (True, 1, True)
    """

    error: float
    groups: int
    frozen: tuple[str, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the function stayed the same."""
        return self.error <= self.tolerance


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
        for tensor, axes in self.axes.items():
            for axis in axes:
                for units in units_in(axis):
                    if units.group not in self.groups:
                        raise SpecError(f"{tensor!r} names group {units.group!r}, which isn't in the spec.")
                    if units.inner != (units.group in self.outer):
                        raise SpecError(
                            f"{tensor!r} writes group {units.group!r} {'with' if units.inner else 'without'} "
                            "square brackets; only inner groups must have them."
                        )
        for inner, outer in self.outer.items():
            if inner not in self.groups or outer not in self.groups or outer in self.outer:
                raise SpecError(
                    f"Group {inner!r} cannot be inside {outer!r}: both must be groups, nested one level deep."
                )

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the expected shape of a tensor."""
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
        """Read a spec that was verified and not modified since; ``load_spec`` reads any other.

        Raises:
            SpecError: the file isn't a spec, or it was edited, comes from elsewhere or was never verified.
        """
        spec, untouched = read_spec(path)
        if not untouched:
            raise SpecError(
                f"{path}: the digest doesn't match the content, so the file was edited or comes from elsewhere. "
                "Give the network to verify it on (--network, or load_spec(path, module, example_args))."
            )
        if spec.verification is None or not spec.verification.passed:
            raise SpecError(
                f"{path}: this spec was never verified. Give the network to verify it on (--network, or "
                "load_spec(path, module, example_args))."
            )
        return spec


def read_spec(path: str | Path) -> tuple[PermutationSpec, bool]:
    """Read a spec as is, and whether its digest matches.

    Raises:
        SpecError: the file isn't a spec.
    """
    document = _read(path)
    seal = document.pop("digest", None)
    return _build(document, path), seal is not None and seal == _seal(document)


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
    if is_checkpoint(Path(path)):
        raise SpecError(
            f"{path} is a checkpoint, not a permutation spec; expected the YAML that `weightspace spec` or "
            "PermutationSpec.save wrote. Without one, derive it from the network (--network, --task, or derive_spec)."
        )
    try:
        documents = read_yaml(Path(path))
    except WeightspaceError as error:
        raise SpecError(str(error)) from error
    document = documents[0] if len(documents) == 1 else None
    if not isinstance(document, dict) or document.get("weightspace_spec") != _FORMAT:
        raise SpecError(f"{path}: not a permutation spec (it lacks 'weightspace_spec: {_FORMAT}').")
    return document


def _seal(document: Mapping[str, Any]) -> str | None:
    """Return the digest of a document, or None if it isn't a saved spec."""
    try:
        return _sha256(document)
    except (TypeError, ValueError):
        return None


def _build(document: Mapping[str, Any], path: str | Path) -> PermutationSpec:
    try:
        listed = _mapping(document, "groups")
        sizes = {name: entry["size"] if isinstance(entry, dict) else entry for name, entry in listed.items()}
        if bad := [name for name, size in sizes.items() if type(size) is not int or not 1 <= size <= MAX_UNITS]:
            raise SpecError(f"group {bad[0]!r} must have a positive number of units.")
        frozen = _names(document, "frozen")
        spec = PermutationSpec(
            groups=sizes,
            axes={name: parse_axes(str(text)) for name, text in _mapping(document, "tensors").items()},
            outer={name: str(entry["inside"]) for name, entry in listed.items() if isinstance(entry, dict)},
            statistics=frozenset(_names(document, "statistics")),
            frozen=frozen,
            verification=_verification(document.get("verification"), frozen),
        )
        _check_sizes(spec)
        return spec
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except KeyError as error:
        raise SpecError(f"{path}: not a permutation spec ({error} is missing).") from error


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of the document that is a mapping."""
    found = document[key]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SpecError(f"not a permutation spec: {key!r} is a {type(found).__name__}, expected a mapping.")
    return found


def _names(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a section of the document that is a list of names; empty if it is missing."""
    found = document.get(key, ())
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise SpecError(f"not a permutation spec: {key!r} is a {type(found).__name__}, expected a list of names.")
    return tuple(found)


def _verification(record: Any, frozen: tuple[str, ...]) -> Verification | None:
    if record is None:
        return None
    fields: dict[str, Any] = record if isinstance(record, dict) else {}
    error, tolerance, groups = fields.get("error"), fields.get("tolerance"), fields.get("groups")
    if not isinstance(error, int | float) or not isinstance(tolerance, int | float) or not isinstance(groups, int):
        raise SpecError("not a permutation spec: 'verification' must have the numbers error, tolerance and groups.")
    return Verification(float(error), groups, frozen, float(tolerance))


def _check_sizes(spec: PermutationSpec) -> None:
    """Check that the shapes are possible for tensors, and that each group is on some axis."""
    for name in spec.axes:
        if math.prod(size or 1 for size in spec.shape(name)) > MAX_UNITS:
            raise SpecError(f"{name!r} has more units than a tensor can have.")
    used = {units.group for axes in spec.axes.values() for axis in axes for units in units_in(axis)}
    if unused := [group for group in spec.groups if group not in used]:
        raise SpecError(f"group {unused[0]!r} is on no axis of a tensor.")
