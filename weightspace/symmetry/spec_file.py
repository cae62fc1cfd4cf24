"""Spec files: YAML with a digest, and the sections that every kind of spec has.

A file whose digest no longer matches its content, or that was never verified, is refused until it is verified against
a network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.checkpoints.detection import is_checkpoint
from weightspace.checkpoints.yaml_file import read_yaml
from weightspace.errors import SpecError, WeightspaceError
from weightspace.symmetry.pattern import MAX_UNITS, Pattern, format_axes, parse_axes, units_in
from weightspace.symmetry.verification import Verification

_FORMAT = 1


class Spec(Protocol):
    """The fields that every kind of spec has."""

    @property
    def groups(self) -> Mapping[str, int]:
        """Name -> number of units."""
        ...

    @property
    def axes(self) -> Mapping[str, tuple[Pattern, ...]]:
        """Tensor -> one pattern per axis."""
        ...

    @property
    def outer(self) -> Mapping[str, str]:
        """Inner group -> outer group."""
        ...

    @property
    def statistics(self) -> frozenset[str]:
        """Tensors that are ignored in matching."""
        ...

    @property
    def frozen(self) -> tuple[str, ...]:
        """Lost symmetries."""
        ...

    @property
    def verification(self) -> Verification | None:
        """The check that it passed."""
        ...

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the expected shape of a tensor."""
        ...


def shared_content(spec: Spec) -> dict[str, Any]:
    """Return the sections of a document that identify an architecture; groups have no kinds yet."""
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


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_spec(path: str | Path, header: str, content: Mapping[str, Any], spec: Spec) -> None:
    """Write a spec as YAML, atomically, with its digest.

    Args:
        path: the file.
        header: comments at its top.
        content: what identifies the architecture.
        spec: the spec, for its losses and its verification.
    """
    document = {**content, "frozen": list(spec.frozen), "verification": _record(spec.verification)}
    document["digest"] = digest_of(document)
    text = header + yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True)
    with replacing_file(Path(path)) as file:
        file.write(text.encode())


def _record(verification: Verification | None) -> dict[str, Any] | None:
    if verification is None:
        return None
    return {
        "error": verification.error,
        "tolerance": verification.tolerance,
        "groups": verification.groups,
    }


def read_document(path: str | Path) -> tuple[dict[str, Any], bool]:
    """Read a spec file as it is, and whether its digest matches.

    Raises:
        SpecError: the file isn't a spec.
    """
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
    seal = document.pop("digest", None)
    return document, seal is not None and seal == _seal(document)


def _seal(document: Mapping[str, Any]) -> str | None:
    """Return the digest of a document, or None if it isn't a saved spec."""
    try:
        return digest_of(document)
    except (TypeError, ValueError):
        return None


def check_trusted(spec: Spec, path: str | Path, *, untouched: bool) -> None:
    """Refuse a spec that was edited, comes from elsewhere, or was never verified.

    Raises:
        SpecError: it has to be verified on a network first.
    """
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


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the path before the errors of a file's content."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except KeyError as error:
        raise SpecError(f"{path}: not a permutation spec ({error} is missing).") from error


def shared_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that every kind of spec has.

    Raises:
        SpecError: a section makes no sense.
        KeyError: a section is missing.
    """
    listed = section(document, "groups")
    sizes = {name: entry["size"] if isinstance(entry, dict) else entry for name, entry in listed.items()}
    if bad := [name for name, size in sizes.items() if type(size) is not int or not 1 <= size <= MAX_UNITS]:
        raise SpecError(f"group {bad[0]!r} must have a positive number of units.")
    frozen = names_in(document, "frozen")
    nested = {name: entry for name, entry in listed.items() if isinstance(entry, dict)}
    return {
        "groups": sizes,
        "axes": {name: parse_axes(str(text)) for name, text in section(document, "tensors").items()},
        "outer": {name: str(one["inside"]) for name, one in nested.items() if "inside" in one or "kind" not in one},
        "statistics": frozenset(names_in(document, "statistics")),
        "frozen": frozen,
        "verification": _verification(document.get("verification"), frozen),
    }


def section(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of a document that is a mapping."""
    found = document[key]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SpecError(f"not a permutation spec: {key!r} is a {type(found).__name__}, expected a mapping.")
    return found


def names_in(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a section of a document that is a list of names; empty if it is missing."""
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


def check_groups(spec: Spec) -> None:
    """Check that every unit on an axis is of a known group, and that groups are nested one level deep.

    Raises:
        SpecError: they are not.
    """
    for tensor, axes in spec.axes.items():
        for units in (units for axis in axes for units in units_in(axis)):
            if units.group not in spec.groups:
                raise SpecError(f"{tensor!r} names group {units.group!r}, which isn't in the spec.")
            if units.inner != (units.group in spec.outer):
                raise SpecError(
                    f"{tensor!r} writes group {units.group!r} {'with' if units.inner else 'without'} "
                    "square brackets; only inner groups must have them."
                )
    for inner, outer in spec.outer.items():
        if inner not in spec.groups or outer not in spec.groups or outer in spec.outer:
            raise SpecError(f"Group {inner!r} cannot be inside {outer!r}: both must be groups, nested one level deep.")


def check_sizes(spec: Spec) -> None:
    """Check that the shapes are possible for tensors, and that each group is on some axis.

    Raises:
        SpecError: they are not.
    """
    for name in spec.axes:
        if math.prod(size or 1 for size in spec.shape(name)) > MAX_UNITS:
            raise SpecError(f"{name!r} has more units than a tensor can have.")
    used = {units.group for axes in spec.axes.values() for axis in axes for units in units_in(axis)}
    if unused := [group for group in spec.groups if group not in used]:
        raise SpecError(f"group {unused[0]!r} is on no axis of a tensor.")
