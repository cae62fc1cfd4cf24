"""Collect the warnings of a merge for its report, and forward them to a callback."""

from __future__ import annotations

from weightspace.merging.recipe.types import Warn


class WarningLog:
    """Callable that appends each line to ``lines`` and forwards it to ``warn``."""

    def __init__(self, warn: Warn | None) -> None:
        self.lines: list[str] = []
        self.warn = warn

    def __call__(self, line: str) -> None:
        """Append a line and forward it."""
        self.lines.append(line)
        if self.warn is not None:
            self.warn(line)
