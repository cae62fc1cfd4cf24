"""Plans and sizes of merges, as the commands that merge from files to files print and read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.merging import MergeReport

#: Sizes as people write them.
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}


def plan_rows(report: MergeReport) -> dict[str, str]:
    """Return what a merge would do, as lines of a name and a text."""
    return {
        "method": report.method,
        "output": f"{report.out} ({', '.join(report.files)})",
        "tensors": f"{report.tensors:,}",
        "reads": _bytes(report.read_bytes),
        **({"fetches": _bytes(report.fetched_bytes)} if report.fetched_bytes else {}),
        "writes": _bytes(report.written_bytes),
        "memory": f"about {_bytes(report.memory)} beside the interpreter",
        "time": f"about {report.seconds:,.0f} s" if report.seconds >= 1 else "about a second",
    }


def size_of(text: str) -> int:
    """Return a size such as 5GB in bytes.

    Raises:
        WeightspaceError: it is no size.
    """
    number, factor = text.upper().strip(), 1
    for unit, size in _UNITS.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
            break
    try:
        size = int(float(number) * factor)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise WeightspaceError(f"--shard-size is a size such as 5GB or 500MB, found {text!r}.")
    return size


def _bytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} bytes"
