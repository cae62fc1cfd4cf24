"""Collector of the warnings of a merge, for its report and for a caller's callback."""

from __future__ import annotations

from weightspace.merging.recipe.types import Warn


class WarningLog:
    """Callable that keeps every line in ``lines`` and passes it on."""

    def __init__(self, warn: Warn | None) -> None:
        self.lines: list[str] = []
        self.warn = warn

    def __call__(self, line: str) -> None:
        """Keep a line and pass it on."""
        self.lines.append(line)
        if self.warn is not None:
            self.warn(line)
