"""Symmetry specs: which axes of which tensors are moved by one map, of which kind, after which folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from weightspace.errors import SpecError
from weightspace.reprs import brief
from weightspace.symmetry.pattern import Pattern, size_of, units_in
from weightspace.symmetry.spec import more_than_permuted
from weightspace.symmetry.spec_file import (
    check_groups,
    check_sizes,
    check_trusted,
    digest_of,
    naming,
    read_document,
    section,
    shared_content,
    shared_fields,
    write_spec,
)
from weightspace.symmetry.verification import Verification

#: Kinds of maps of the units of a group: an order, an order with signs, a rotation or reflection, or an angle for each
#: pair of rotary dimensions.
Kind: TypeAlias = Literal["permutation", "signed", "orthogonal", "phases"]

_KINDS: tuple[str, ...] = get_args(Kind)

_HEADER = """\
# Which axes of which tensors are moved by one map. The kind of a group is permutation (unless it is given), signed
# (a permutation with signs on the axes marked ±), orthogonal (fixes: ones keeps the vector of ones) or phases (an angle
# for each pair of rotary dimensions). First the gain and shift of each of the folds move into its readers.
"""


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads a norm.

    Attributes:
        weight: name of its weight.
        axis: the axis of the weight that is read along.
        bias: name of its bias, or None.
    """

    weight: str
    axis: int
    bias: str | None


@dataclass(frozen=True)
class Fold:
    """A norm whose gain moves into the layers that read it, and whose shift moves into their biases.

    Attributes:
        gain: name of the gain, or None.
        shift: name of the shift, or None.
        readers: the layers.
    """

    gain: str | None
    shift: str | None
    readers: tuple[Reader, ...]

    @property
    def keeps_shift(self) -> bool:
        """Whether the shift stays, divided by the gain: a reader has no bias that could take it."""
        return self.shift is not None and any(reader.bias is None for reader in self.readers)


@brief
@dataclass(frozen=True)
class SymmetrySpec:
    """The symmetries of an architecture once its norms are folded.

    Attributes:
        groups: name -> number of units; for an inner group, the number per unit of its outer group.
        kinds: name -> kind, of every group.
        axes: tensor -> one pattern per axis; the units of a signed group change their signs where ± marks them.
        outer: inner group -> outer group.
        fixes_ones: orthogonal groups whose maps keep the vector of ones.
        folds: the norms to fold.
        statistics: tensors that are ignored in matching.
        frozen: lost symmetries, and for each group that is moved by less than an orthogonal map (in a derivation with
            ``symmetry="signed"``: without signs) the reason.
        verification: the check that it passed, or None.

    Raises:
        SpecError: groups, kinds, patterns and folds contradict one another.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.zeros(1, 4),), symmetry="full")
        >>> dict(spec.kinds), spec.verification.passed
        ({'layer.0': 'signed'}, True)
        >>> spec.save("spec.yaml")
        >>> ws.SymmetrySpec.load("spec.yaml") == spec
        True
    """

    groups: Mapping[str, int]
    kinds: Mapping[str, Kind]
    axes: Mapping[str, tuple[Pattern, ...]]
    outer: Mapping[str, str] = field(default_factory=dict)
    fixes_ones: frozenset[str] = frozenset()
    folds: tuple[Fold, ...] = ()
    statistics: frozenset[str] = frozenset()
    frozen: tuple[str, ...] = ()
    verification: Verification | None = None

    def __post_init__(self) -> None:
        check_groups(self)
        _check_kinds(self)
        for one in self.folds:
            _check_fold(one, self)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the expected shape of a tensor."""
        return tuple(size_of(axis, self.groups) for axis in self.axes[tensor])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes, kinds, patterns and folds; the same for every derivation of an architecture."""
        return digest_of(_content(self))

    def save(self, path: str | Path) -> None:
        """Write the spec as YAML, atomically."""
        write_spec(path, _HEADER, _content(self), self)

    @classmethod
    def load(cls, path: str | Path) -> SymmetrySpec:
        """Read a spec that was verified and not modified since; ``load_spec`` reads any other.

        Raises:
            SpecError: the file isn't a symmetry spec, or it was edited, comes from elsewhere or was never verified.
        """
        document, untouched = read_document(path)
        if not more_than_permuted(document):
            raise SpecError(f"{path} is a permutation spec; expected groups with kinds. Use PermutationSpec.load.")
        spec = symmetries_in(document, path)
        check_trusted(spec, path, untouched=untouched)
        return spec


def symmetries_in(document: Mapping[str, Any], path: str | Path) -> SymmetrySpec:
    """Return the symmetry spec that the document of a file describes.

    Raises:
        SpecError: it makes no sense.
    """
    with naming(path):
        fields = shared_fields(document)
        entries = {name: entry for name, entry in section(document, "groups").items() if isinstance(entry, dict)}
        fixes = {name: entry["fixes"] for name, entry in entries.items() if entry.get("fixes") is not None}
        if odd := [name for name, fixed in fixes.items() if fixed != "ones"]:
            raise SpecError(f"group {odd[0]!r} fixes {fixes[odd[0]]!r}; expected 'ones'.")
        spec = SymmetrySpec(
            **fields,
            kinds={name: entries.get(name, {}).get("kind", "permutation") for name in fields["groups"]},
            fixes_ones=frozenset(fixes),
            folds=tuple(_folds(document.get("folds", []))),
        )
        check_sizes(spec)
        return spec


def _content(spec: SymmetrySpec) -> dict[str, Any]:
    """Return what identifies an architecture and its symmetries."""
    content = shared_content(spec)
    for name, kind in spec.kinds.items():
        entry = content["groups"][name] if name in spec.outer else {"size": spec.groups[name]}
        further = {"kind": kind} | ({"fixes": "ones"} if name in spec.fixes_ones else {})
        content["groups"][name] = entry | further
    content["folds"] = [asdict(one) | {"readers": [asdict(reader) for reader in one.readers]} for one in spec.folds]
    return content


def _folds(listed: Any) -> Iterator[Fold]:
    """Yield the folds of a document."""
    if not isinstance(listed, list):
        raise SpecError(f"'folds' is a {type(listed).__name__}, expected a list.")
    for entry in listed:
        readers = entry.get("readers") if isinstance(entry, dict) else None
        if not isinstance(readers, list) or not all(isinstance(reader, dict) for reader in readers):
            raise SpecError("a fold must be a mapping with gain, shift and a list of readers.")
        names = [entry.get("gain"), entry.get("shift"), *(reader.get("bias") for reader in readers)]
        whole = all(type(reader["axis"]) is int and isinstance(reader["weight"], str) for reader in readers)
        if not whole or not all(name is None or isinstance(name, str) for name in names):
            raise SpecError("a fold must name its tensors, and each of its readers must have weight, axis and bias.")
        read = tuple(Reader(reader["weight"], reader["axis"], reader.get("bias")) for reader in readers)
        yield Fold(entry.get("gain"), entry.get("shift"), read)


def _check_kinds(spec: SymmetrySpec) -> None:
    """Check that every group has a kind that suits its size, its nesting and its marks."""
    if spec.kinds.keys() != spec.groups.keys():
        odd = sorted(spec.kinds.keys() ^ spec.groups.keys())
        raise SpecError(f"groups and kinds differ in {len(odd)} groups, for example {odd[0]!r}.")
    for name, kind in spec.kinds.items():
        if kind not in _KINDS:
            raise SpecError(f"group {name!r} has the kind {kind!r}; expected one of {', '.join(_KINDS)}.")
        if kind == "phases" and spec.groups[name] % 2:
            raise SpecError(
                f"group {name!r} of {spec.groups[name]} units cannot have phases, which turn pairs of units; expected "
                "an even number."
            )
    for name in spec.fixes_ones:
        if spec.kinds.get(name) != "orthogonal":
            raise SpecError(f"group {name!r} fixes the vector of ones, which only orthogonal groups do.")
    for inner, outer in spec.outer.items():
        if spec.kinds[outer] not in ("permutation", "signed"):
            raise SpecError(f"group {inner!r} is inside {outer!r}, whose units are mixed; they may only be permuted.")
    marked = set()
    for tensor, axes in spec.axes.items():
        for units in (units for axis in axes for units in units_in(axis) if units.signed):
            marked.add(units.group)
            if spec.kinds[units.group] != "signed":
                kind = spec.kinds[units.group]
                raise SpecError(f"{tensor!r} marks group {units.group!r} with ±, but its kind is {kind}, not signed.")
    if bare := [name for name, kind in spec.kinds.items() if kind == "signed" and name not in marked]:
        raise SpecError(f"group {bare[0]!r} is signed, but no axis marks it with ±.")


def _check_fold(one: Fold, spec: SymmetrySpec) -> None:
    """Check that the tensors of a fold are there, and fit each other."""
    vectors = [name for name in (one.gain, one.shift) if name is not None]
    label = f"the fold of {', '.join(vectors)}"
    if not vectors:
        raise SpecError("a fold must have a gain or a shift.")
    biases = [reader.bias for reader in one.readers if reader.bias is not None]
    for name in (*vectors, *biases, *(reader.weight for reader in one.readers)):
        if name not in spec.axes:
            raise SpecError(f"{label} names {name!r}, which is no tensor of the spec.")
    shapes = {spec.shape(name) for name in vectors}
    if len(shapes) > 1 or any(len(spec.shape(name)) != 1 for name in (*vectors, *biases)):
        raise SpecError(f"{label} must have vectors of one length, and biases that are vectors.")
    for reader in one.readers:
        shape = spec.shape(reader.weight)
        if not 0 <= reader.axis < len(shape) or (shape[reader.axis],) not in shapes:
            raise SpecError(f"{label} is read along axis {reader.axis} of {reader.weight!r}, whose shape is {shape}.")
