"""Progress events: the single type that long calls report to ``on_progress``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One step of a long call, as passed to ``on_progress``.

    Attributes:
        stage: the unit of progress: ``"epoch"``, ``"sweep"``, ``"bytes"``, …
        index: the number of the step, from 1, or the amount done so far.
        total: total number of steps or amount; 0 if unknown.
        value: the main figure of the step (a loss in nats, an objective, a score), or None.
        name: the subject of the step (an ingredient, a pair of models), or empty.
        details: further figures by name.

    Example:
        >>> import weightspace as ws
        >>> from weightspace.progress import Progress
        >>> task = ws.load_task("digits-mlp")
        >>> events: list[Progress] = []
        >>> state = ws.train(task, seed=0, epochs=2, on_progress=events.append)
        >>> [(event.stage, event.index, event.total) for event in events]
        [('epoch', 1, 2), ('epoch', 2, 2)]
        >>> events[1].value < events[0].value
        True
    """

    stage: str
    index: int
    total: int = 0
    value: float | None = None
    name: str = ""
    details: Mapping[str, float] = field(default_factory=dict, hash=False)
