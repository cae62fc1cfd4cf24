"""One-line representations of results, whose long fields are summarised by size and range, and of numbers of bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from weightspace.escaping import one_line

Result = TypeVar("Result")

#: Maximum number of items to show one by one, and maximum length of a text.
_ITEMS, _LETTERS = 3, 60


def brief(cls: type[Result]) -> type[Result]:
    """Give a dataclass a one-line ``repr``; apply this decorator above ``dataclass``."""

    def __repr__(self: Any) -> str:  # noqa: N807
        fields = (field.name for field in dataclasses.fields(self) if field.repr)
        return one_line(f"{cls.__name__}({', '.join(f'{name}={_summary(getattr(self, name))}' for name in fields)})")

    cls.__repr__ = __repr__
    return cls


def _summary(value: Any) -> str:
    """Summarise a value in a few words."""
    if isinstance(value, bool | int) or value is None:
        return repr(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value if len(value) <= _LETTERS else f"{value[:_LETTERS]}…")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{_some([repr(name) for name in list(value)[:_ITEMS]], len(value))}}}"
    if isinstance(value, Sequence) and value and all(isinstance(one, float | int) for one in value):
        if len(value) <= _ITEMS:
            return f"({', '.join(map(_summary, value))})"
        return f"<{len(value)} from {min(value):.4g} to {max(value):.4g}>"
    if isinstance(value, Collection):
        if value and all(isinstance(one, Sequence) and not isinstance(one, str) for one in value):
            return f"<{len(value)} × {len(next(iter(value)))}>"
        plain = all(isinstance(one, str | int) for one in value)
        return f"({_some([_summary(one) for one in list(value)[:_ITEMS]], len(value))})" if plain else f"<{len(value)}>"
    text = repr(value)
    return text if "\n" not in text and len(text) <= 2 * _LETTERS else f"<{type(value).__name__}>"


def _some(shown: list[str], count: int) -> str:
    """Return the first items, and the total number if there are more."""
    return ", ".join(shown) + (f", … {count} in total" if count > len(shown) else "")


def size(count: int) -> str:
    """Return a number of bytes in decimal units, such as ``1.24 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count} bytes"
