"""Labels by name: every class is found by what it is called, never by where it stands in somebody's matrix."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: A label: usually a string, but whatever the caller's classifier or graph calls its classes will do.
Label: TypeAlias = Hashable

#: Names that an error lists, at most.
_SHOWN = 5


class Names(Sequence[Any]):
    """Different names, in the order of their positions ``0 … n-1``.

    Raises:
        WeightspaceError: there are none, a name is there twice, or one cannot be a name.
    """

    def __init__(self, names: Iterable[Label]) -> None:
        self._names = tuple(plain(name) for name in names)
        self._positions: dict[Label, int] = {}
        for position, name in enumerate(self._names):
            if name in self._positions:
                raise WeightspaceError(
                    f"The label {name!r} is there twice, at positions {self._positions[name]:,} and {position:,}; "
                    "expected every label once."
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
        """The names; always the same tuple."""
        return self._names

    def position(self, name: Label) -> int:
        """Return the position of a name.

        Raises:
            KeyError: it is not there.
        """
        return self._positions[name]

    def positions(self, names: Iterable[Label], what: str) -> np.ndarray:
        """Return the positions of some of the names, int64.

        Args:
            names: each of them once, in the order of the result.
            what: whose names they are, for the error: ``"observed classes"``.

        Raises:
            WeightspaceError: a name is not there, or twice, or ``names`` is a single string.
        """
        positions = self.positions_of(names, what)
        if len(np.unique(positions)) != len(positions):
            _, first = np.unique(positions, return_index=True)
            again = np.setdiff1d(np.arange(len(positions)), first)[0]
            twice = self._names[int(positions[again])]
            raise WeightspaceError(f"The label {twice!r} is twice among the {what}; expected every one once.")
        return positions

    def positions_of(self, names: Iterable[Label], what: str) -> np.ndarray:
        """Return the positions of names, which may repeat, int64.

        Raises:
            WeightspaceError: a name is not there, or ``names`` is a single string.
        """
        if isinstance(names, str):
            raise WeightspaceError(f"The {what} are a list of names; found the string {names!r}.")
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
        """Return the label that is written as a name is, but of another type: 1 and "1"."""
        if isinstance(name, str):
            return next((label for label in self._names if not isinstance(label, str) and str(label) == name), None)
        return str(name) if isinstance(name, int | float) and str(name) in self._positions else None


def plain(name: Any) -> Label:
    """Return a name as a plain Python value, whatever array it came from."""
    if type(name) in (str, int):  # the usual ones, of which there may be many
        return name
    value = name.item() if isinstance(name, np.generic) else name
    if not isinstance(value, Hashable):
        raise WeightspaceError(f"A label is a string or a number; found a {type(value).__name__}.")
    return value


def _listed(names: Sequence[Label]) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


def label_array(labels: Sequence[Any]) -> np.ndarray:
    """Return labels as a vector; of objects where numpy would make text of numbers, or rows of tuples."""
    kinds = {type(label) for label in labels}
    if len(kinds) <= 1 and tuple not in kinds:
        return np.asarray(labels)
    found = np.empty(len(labels), dtype=object)
    for index, label in enumerate(labels):
        found[index] = label
    return found
