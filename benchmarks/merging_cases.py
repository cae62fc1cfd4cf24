"""Cases of the merging benchmark: recipes, tools and aims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: ``ours`` and ``shipped`` are weightspace: with ``--no-hash --no-fsync``, which is what the others do, and as it is.
CONTENDERS = ("ours", "shipped", "prototype", "peer")
#: The most private memory that weightspace may hold, in MB.
MEMORY_GATE = 400.0
#: Models of every recipe, in folders of these names beside ``base``.
SOURCES, WEIGHTS, DENSITY = ("a", "b"), [0.6, 0.4], [0.5, 0.5]


@dataclass(frozen=True)
class Gate:
    """A contender's figure, divided by another's of the same case if one is named, beside what is aimed at."""

    contender: str
    over: str | None = None
    figure: str = "seconds"
    at_most: float | None = None
    at_least: float | None = None

    def judge(self, median: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
        """Return what was found and whether it passes, or nothing where a contender didn't run."""
        if self.contender not in median or self.over not in (*median, None):
            return None
        found = median[self.contender][self.figure]
        if self.over:
            found /= median[self.over][self.figure]
        passed = found <= self.at_most if self.at_most is not None else found >= (self.at_least or 0)
        return {**asdict(self), "found": found, "passed": passed}


@dataclass(frozen=True)
class Case:
    """A recipe, the models that it merges, who runs it, and what is aimed at."""

    recipe: Mapping[str, Any]
    models: str = "large"
    contenders: Sequence[str] = ("ours", "shipped", "peer")
    gates: Sequence[Gate] = field(default=())


def _recipe(method: str, base: str | None = None, **parameters: Any) -> dict[str, Any]:
    """Return a recipe; parameters that are lists have one value per source."""
    each = [
        {name: value[n] for name, value in parameters.items() if isinstance(value, list)} for n in range(len(SOURCES))
    ]
    common = {name: value for name, value in parameters.items() if not isinstance(value, list)}
    models = [{"model": model} | ({"parameters": own} if own else {}) for model, own in zip(SOURCES, each, strict=True)]
    content = {"merge_method": method, "base_model": base, "models": models, "parameters": common, "dtype": "bfloat16"}
    return {name: value for name, value in content.items() if value}


def _faster(times: float) -> list[Gate]:
    memory = [Gate(name, figure="private_mb", at_most=MEMORY_GATE) for name in ("ours", "shipped")]
    return [Gate("peer", "ours", at_least=times), *memory]


_LINEAR = _recipe("linear", weight=WEIGHTS)
_PROTOTYPE = [Gate("ours", "prototype", at_most=1.2), Gate("shipped", "prototype", at_most=1.8)]
_TINY = [Gate("shipped", at_most=5.0), Gate("shipped", figure="private_mb", at_most=MEMORY_GATE)]
CASES: Mapping[str, Case] = {
    "linear": Case(_LINEAR, contenders=CONTENDERS, gates=[*_faster(3.5), *_PROTOTYPE]),
    "task_arithmetic": Case(_recipe("task_arithmetic", "base", weight=WEIGHTS), gates=_faster(3)),
    "model_stock": Case(_recipe("model_stock", "base"), gates=_faster(3)),
    "slerp": Case(_recipe("slerp", "a", t=0.3), gates=_faster(3)),
    "ties": Case(_recipe("ties", "base", weight=WEIGHTS, density=DENSITY), gates=_faster(15)),
    "dare_ties": Case(_recipe("dare_ties", "base", weight=WEIGHTS, density=DENSITY), gates=_faster(8)),
    "sce": Case(_recipe("sce", "base", select_topk=0.5), gates=_faster(15)),
    "karcher": Case(_recipe("karcher"), gates=_faster(15)),
    "tiny_tensors": Case(_LINEAR, models="tiny", contenders=("ours", "shipped"), gates=_TINY),
}
