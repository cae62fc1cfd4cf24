"""Callbacks for the messages of a merge, and the log of them for its report."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.merging.recipe.types import Warn


@dataclass(frozen=True)
class Listeners:
    """Callbacks for the messages of the planner, one line each.

    Attributes:
        warn: called with lines about tensors that a model lacks; None: they are errors.
        notice: called with lines about decisions, and about differences between the models that may be intended.
        ignored: called with lines about settings without effect, as in mergekit; None: they are errors.
    """

    warn: Warn | None = None
    notice: Warn | None = None
    ignored: Warn | None = None

    def silenced(self) -> Listeners:
        """Return listeners that accept the same messages but discard them."""
        return Listeners(self.warn and discard, discard, self.ignored and discard)


def discard(line: str) -> None:
    """Discard a message."""


#: All that can be an error is one.
STRICT = Listeners()


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
