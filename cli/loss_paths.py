"""Measurements of ``weightspace barrier``: a curve for two networks, a matrix for several, a plane for three.

Each is a function that returns a ``Report``; its labels distinguish the networks as given from the matched ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.cli.options import check_writable
from weightspace.cli.progress import progress

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.connectivity import BarrierMatrix, Curve
    from weightspace.tasks import Task

PICTURES = (".png", ".svg", ".pdf")
TABLES = (".csv", ".json")


@dataclass(frozen=True)
class Models:
    """A task and its networks: names, and state dicts under each label."""

    task: Task
    names: tuple[str, ...]
    states: Mapping[str, Sequence[StateDict]]

    def prefix(self, label: str) -> str:
        """Return the words that a label puts before a measurement: none if there is nothing to tell apart."""
        return f"{label} " if len(self.states) > 1 else ""


@dataclass(frozen=True)
class Report:
    """Measurements under each label: results that can be saved, figures for JSON, lines for people.

    ``kind`` is the JSON key of the figures: ``curves``, ``matrices`` or ``planes``.
    """

    kind: str
    results: Mapping[str, Any]
    figures: Mapping[str, dict[str, Any]]
    lines: Iterable[str]
    draw: Callable[[Mapping[str, Any], Path], object]

    def write(self, path: Path) -> list[Path]:
        """Plot all results in one figure, or save them as tables (one file per label if there are two).

        Returns:
            The files written.
        """
        if path.suffix.lower() in PICTURES:
            self.draw(self.results, path)
            return [path]
        files = []
        for label, result in self.results.items():
            file = path if len(self.results) == 1 else path.with_name(f"{path.stem}-{label}{path.suffix}")
            check_writable(file, "file")
            result.save(file)
            files.append(file)
        return files


def curves(
    models: Models,
    *,
    points: int,
    statistics: Any,
    baseline: Any,
    split: Any,
    taylor: bool,
    temperature: bool,
    place: Mapping[str, Any],
) -> Report:
    """Measure the path between two networks."""
    from weightspace import barrier, loss_curve, taylor_barrier
    from weightspace.connectivity import midpoint_temperature

    results, figures, lines = {}, {}, []
    for label, (a, b) in models.states.items():
        prefix = models.prefix(label)
        with progress(f"{prefix}curve") as update:
            curve = loss_curve(
                models.task,
                a,
                b,
                points,
                statistics=statistics,
                split=split,
                on_progress=lambda at, show=update: show(at.index, at.total, f"{at.index}/{at.total}"),
                **place,
            )
        rise = barrier(curve, baseline=baseline)
        fall = None if curve.accuracy is None else barrier(curve, baseline=baseline, score="accuracy")
        results[label] = curve
        figures[label] = {**asdict(curve), "barrier": rise, "accuracy_barrier": fall, "points": points}
        lines.append(f"{prefix}barrier: {in_words(rise, fall, points)}")
        if taylor:
            estimate = taylor_barrier(models.task, a, b, split=split)
            figures[label]["taylor"] = estimate
            off = f", {abs(estimate / rise - 1):.0%} off" if rise > 0 else ""
            lines.append(f"{prefix}Taylor estimate: {estimate:.4f} nats{off}")
        if temperature:
            fitted = midpoint_temperature(models.task, a, b, statistics=statistics, split=split)
            figures[label]["temperature"] = asdict(fitted)
            lines.append(
                f"{prefix}loss at the midpoint: {fitted.loss:.4f}, {fitted.tempered_loss:.4f} at temperature "
                f"{fitted.value:.3f}"
            )
    return Report("curves", results, figures, lines, _draw_curves)


def matrices(
    models: Models, *, points: int, statistics: Any, baseline: Any, split: Any, place: Mapping[str, Any]
) -> Report:
    """Measure the path between every pair of networks."""
    from weightspace import barrier_matrix
    from weightspace.plots import draw_matrices

    results = {}
    for label, states in models.states.items():
        with progress(f"{models.prefix(label)}barriers") as update:
            results[label] = barrier_matrix(
                models.task,
                states,
                names=models.names,
                points=points,
                statistics=statistics,
                baseline=baseline,
                split=split,
                on_progress=lambda at, show=update: show(at.index, at.total, f"pair {at.index}/{at.total}"),
                **place,
            )
    figures = {label: asdict(matrix) for label, matrix in results.items()}
    lines = [line for label, matrix in results.items() for line in _table(models.prefix(label), matrix)]
    return Report("matrices", results, figures, lines, draw_matrices)


def planes(models: Models, *, resolution: int, statistics: Any, split: Any) -> Report:
    """Score the plane through three networks."""
    from weightspace import loss_plane
    from weightspace.plots import draw_planes

    results, lines = {}, []
    for label, states in models.states.items():
        with progress(f"{models.prefix(label)}plane") as update:
            plane = loss_plane(
                models.task,
                *states,
                names=models.names,
                resolution=resolution,
                statistics=statistics,
                split=split,
                on_progress=lambda at, show=update: show(at.index, at.total, f"{at.index}/{at.total}"),
            )
        results[label] = plane
        losses = [loss for row in plane.loss for loss in row]
        of_models = ", ".join(f"{name} {loss:.4f}" for name, loss in zip(plane.models, plane.model_loss, strict=True))
        prefix = models.prefix(label)
        lines.append(f"{prefix}loss of {of_models}; {min(losses):.4f} to {max(losses):.4f} nats on the plane")
    figures = {label: asdict(plane) for label, plane in results.items()}
    return Report("planes", results, figures, lines, draw_planes)


def in_words(rise: float, fall: float | None, points: int) -> str:
    """Return a barrier of the loss in nats, and of any accuracy, measured at a number of positions."""
    of_accuracy = "" if fall is None else f", {100 * fall:.2f} percentage points of accuracy"
    return f"{rise:.4f} nats of loss{of_accuracy} ({points} positions)"


def _draw_curves(curves: Mapping[str, Curve], path: Path) -> object:
    """Draw curves; a single one is that of the linear path."""
    from weightspace.plots import draw_curves

    return draw_curves({"linear path": next(iter(curves.values()))} if len(curves) == 1 else curves, path)


def _table(prefix: str, matrix: BarrierMatrix) -> list[str]:
    """Return the lines of a table: loss barriers above the diagonal, accuracy barriers below."""
    falls = matrix.accuracy_barrier
    width = max(9, *(len(name) + 2 for name in matrix.models))
    heading = "" if falls is None else "; below the diagonal, of the accuracy (percentage points)"
    lines = [f"{prefix}barriers of the loss (nats, {matrix.points} positions){heading}"]
    lines.append(" " * width + "".join(f"{name:>{width}s}" for name in matrix.models))
    for i, name in enumerate(matrix.models):
        cells = [f"{value:.4f}" for value in matrix.barrier[i]]
        below = [""] * i if falls is None else [f"{100 * value:.2f}" for value in falls[i][:i]]
        cells[: i + 1] = [*below, "·"]
        lines.append(f"{name:{width}s}" + "".join(f"{cell:>{width}s}" for cell in cells))
    return lines
