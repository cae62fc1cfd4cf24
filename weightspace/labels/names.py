"""Label names: classes are looked up by name, never by their position in some matrix."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: A label: usually a string, but any hashable value that the caller's classifier or graph uses for a class.
Label: TypeAlias = Hashable

#: Largest number of names listed in an error.
_SHOWN = 5


class Names(Sequence[Any]):
    """Distinct names in order of position, ``0 … n-1``.

    Raises:
        WeightspaceError: there are no names, a name is duplicated, or one isn't hashable.
    """

    def __init__(self, names: Iterable[Label]) -> None:
        self._names = tuple(plain(name) for name in names)
        self._positions: dict[Label, int] = {}
        for position, name in enumerate(self._names):
            if name in self._positions:
                raise WeightspaceError(
                    f"The label {name!r} appears twice, at positions {self._positions[name]:,} and {position:,}; "
                    "expected distinct labels."
                )
            self._positions[name] = position
        if not self._names:
            raise WeightspaceError("There are no labels; expected at least one.")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._names[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return plain(name) in self._positions

    @property
    def listed(self) -> tuple[Any, ...]:
        """The names as a tuple, always the same object."""
        return self._names

    def position(self, name: Label) -> int:
        """Return the position of a name.

        Raises:
            KeyError: the name is unknown.
        """
        return self._positions[name]

    def positions(self, names: Iterable[Label], what: str) -> np.ndarray:
        """Return the positions of distinct names, int64.

        Args:
            names: distinct names, in the order of the result.
            what: description of the names for error messages, e.g. ``"observed classes"``.

        Raises:
            WeightspaceError: a name is unknown or duplicated, or ``names`` is a single string.
        """
        positions = self.positions_of(names, what)
        if len(np.unique(positions)) != len(positions):
            _, first = np.unique(positions, return_index=True)
            again = np.setdiff1d(np.arange(len(positions)), first)[0]
            twice = self._names[int(positions[again])]
            raise WeightspaceError(f"The label {twice!r} appears twice among the {what}; expected distinct labels.")
        return positions

    def positions_of(self, names: Iterable[Label], what: str) -> np.ndarray:
        """Return the positions of names, which may repeat, int64.

        Raises:
            WeightspaceError: a name is unknown, or ``names`` is a single string.
        """
        if isinstance(names, str):
            raise WeightspaceError(f"The {what} must be a list of names; found the string {names!r}.")
        found = [plain(name) for name in names]
        missing = [name for name in found if name not in self._positions]
        if missing:
            raise self._missing(missing, what)
        return np.fromiter((self._positions[name] for name in found), np.int64, len(found))

    def _missing(self, missing: list[Label], what: str) -> WeightspaceError:
        if (other := self._of_another_type(missing[0])) is not None:
            first = (
                f"Unknown label {missing[0]!r}, of type {type(missing[0]).__name__}; the metric has {other!r}, of type "
                f"{type(other).__name__}. Expected labels of one type: convert one of the two sides."
            )
        elif all(isinstance(name, str) for name in (missing[0], *self._names[:1])):
            first = str(unknown("label", str(missing[0]), (str(name) for name in self._names)))
        else:
            known = ", ".join(repr(name) for name in self._names[:_SHOWN])
            first = f"Unknown label {missing[0]!r}; the metric has {len(self):,} labels: {known}, …"
        rest = f" {len(missing):,} of the {what} are missing: {_listed(missing)}." if len(missing) > 1 else ""
        return WeightspaceError(f"{what[0].upper()}{what[1:]}: {first}{rest}")

    def _of_another_type(self, name: Label) -> Label | None:
        """Return the label with the same spelling as a name but another type, as with 1 and "1"."""
        if isinstance(name, str):
            return next((label for label in self._names if not isinstance(label, str) and str(label) == name), None)
        return str(name) if isinstance(name, int | float) and str(name) in self._positions else None


def plain(name: Any) -> Label:
    """Return a name as a plain Python value, converted from a NumPy scalar if necessary."""
    if type(name) in (str, int):  # fast path: there may be many
        return name
    value = name.item() if isinstance(name, np.generic) else name
    if not isinstance(value, Hashable):
        raise WeightspaceError(f"A label must be a string or a number; found a {type(value).__name__}.")
    return value


def _listed(names: Sequence[Label]) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


def label_array(labels: Sequence[Any]) -> np.ndarray:
    """Return labels as a vector, of dtype object if NumPy would convert numbers to text or tuples to rows."""
    kinds = {type(label) for label in labels}
    if len(kinds) <= 1 and tuple not in kinds:
        return np.asarray(labels)
    found = np.empty(len(labels), dtype=object)
    for index, label in enumerate(labels):
        found[index] = label
    return found
