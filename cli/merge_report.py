"""Format the plans of merges for printing, and parse sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weightspace.cli.commands import is_quiet
from weightspace.cli.printing import echo

from weightspace import WeightspaceError
from weightspace.reprs import size

if TYPE_CHECKING:
    from weightspace.merging import MergeReport, Reproduction

#: Units of human-readable sizes, in bytes.
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}


def plan_rows(report: MergeReport) -> dict[str, str]:
    """Return the rows to print for a plan: name -> text."""
    return {
        "method": report.method,
        "output": f"{report.out} ({', '.join(report.files)})",
        "tensors": f"{report.tensors:,}",
        **({"tokens": _tokens(report)} if report.tokens else {}),
        "reads": size(report.read_bytes),
        **({"fetches": size(report.fetched_bytes)} if report.fetched_bytes else {}),
        "writes": size(report.written_bytes),
        "memory": f"about {size(report.memory)} on top of the interpreter",
        "time": f"about {report.seconds:,.0f} s" if report.seconds >= 1 else "about a second",
    }


def _tokens(report: MergeReport) -> str:
    new = f", {report.new_tokens:,} of them added to the tokenizer" if report.new_tokens else ""
    return f"{report.tokens:,}{new}"


def size_of(text: str) -> int:
    """Parse a size such as 5GB into bytes.

    Raises:
        WeightspaceError: the text is not a size.
    """
    number, factor = text.upper().strip(), 1
    for unit, scale in _UNITS.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), scale
            break
    try:
        count = int(float(number) * factor)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise WeightspaceError(f"--shard-size must be a size such as 5GB or 500MB; found {text!r}.")
    return count


def difference_line(found: Reproduction) -> str:
    """Describe the difference between a merge and its rerun."""
    why = f"these inputs have changed: {', '.join(found.changed)}" if found.changed else "the inputs are the same"
    verb = "differ" if found.differing[1:] else "differs"
    return f"{found.out} was not reproduced: {', '.join(found.differing)} {verb}; {why}."


def note_resumed(report: MergeReport) -> None:
    """Say on stderr that a merge resumed an interrupted one."""
    if report.resumed and not is_quiet():
        echo(f"resumed: {report.resumed:,} of {report.tensors:,} tensors had been merged before", err=True)


def interrupted_line(output: str) -> str:
    """Return the line that says what an interrupted merge has kept."""
    from weightspace.merging.out_of_core.stage_folders import hidden_folder
    from weightspace.merging.out_of_core.staging import staging_folder

    kept = [str(path) for path in (staging_folder(Path(output)), hidden_folder(Path(output))) if path.exists()]
    if not kept:
        return "Stopped before anything was written."
    them = "it" if len(kept) == 1 else "them"
    places = " and ".join(kept)
    return f"Stopped. Progress is kept in {places}: rerun the command to resume, or delete {them} to discard it."
