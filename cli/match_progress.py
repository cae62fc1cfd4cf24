"""Progress of ``weightspace match``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from weightspace.cli.progress import Update

if TYPE_CHECKING:
    from weightspace.matching import Step, Sweep, Trial


def shown(update: Update) -> Callable[[Sweep | Step | Trial], None]:
    """Return what shows how far a method is."""
    from weightspace.matching import Sweep, Trial

    def show(fact: Sweep | Step | Trial) -> None:
        if isinstance(fact, Trial):
            update(fact.step, fact.steps, f"step {fact.step}/{fact.steps}, {fact.loss:.6g}, lowest {fact.best:.6g}")
        else:
            what = "sweep" if isinstance(fact, Sweep) else "step"
            update(0, 0, f"{what} {fact.number}, objective {fact.objective:.6g}")

    return show
