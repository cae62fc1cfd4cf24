"""Tables of soups: one row per recipe, one line per candidate, and a warning about a soup that is worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightspace.cli.options import check_writable

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.progress import Progress
    from weightspace.soups import Row, SoupReport
    from weightspace.tasks import Mode

PICTURES = (".png", ".svg", ".pdf")


def check_reports(paths: Sequence[str]) -> None:
    """Check that reports can be written, before anything is scored."""
    if bad := [path for path in paths if Path(path).suffix.lower() not in (*PICTURES, ".json")]:
        raise WeightspaceError(f"{bad[0]} is neither an image ({', '.join(PICTURES)}) nor a .json file.")
    for path in paths:
        check_writable(path, "file")


def write_reports(report: SoupReport, paths: Sequence[str]) -> None:
    """Plot or save a report."""
    from weightspace.plots import draw_soups

    for path in paths:
        if Path(path).suffix.lower() == ".json":
            report.save(path)
        else:
            draw_soups(report, path)


def trial_row(trial: Progress, mode: Mode) -> tuple[str, ...]:
    """Return a candidate as a row: index and total, name, number of models, score, verdict."""
    accepted, score = trial.details.get("accepted"), objective_of(trial, mode)
    verdict = "" if accepted is None else "accepted" if accepted else "rejected"
    name = trial.name if accepted is None else f"+ {trial.name}"
    return (f"{trial.index}/{trial.total}", name, f"{trial.details['size']:.0f}", f"{score:.4f}", verdict)


def objective_of(event: Progress, mode: Mode) -> float:
    """Return the objective of an event, whose own score is always higher for the better."""
    score = float("nan") if event.value is None else event.value
    return -score if mode == "min" else score


def table_of(report: SoupReport) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the table of recipes."""
    splits = ["validation", "test", *report.shifts]
    head = ["recipe", "networks", *(f"{split} {report.objective}" for split in splits)]
    if report.shifts:
        head.append("mean of shifts")
    return head, [_cells(report, row, splits) for row in report.rows]


def notes_of(report: SoupReport) -> list[str]:
    """Return notes on the table: the ensemble's cost, the oracle, and rows that are far worse than a single model."""
    lines = [f"the ensemble runs all {row.models} networks, a soup only one" for row in report.rows if row.models > 1]
    lines.append(f"{report.rows[-1].name}: selected on the test data, for comparison only")
    for name, (ours, best) in report.far_below().items():
        lines.append(
            f"{name} is far worse than every single model on validation: {ours:.4f}; the best has {best:.4f}. "
            "Are the networks fine-tunes of one model? Align independently trained ones first (weightspace match)"
        )
    return lines


def _cells(report: SoupReport, row: Row, splits: Sequence[str]) -> list[str]:
    cells = [row.name, str(len(set(row.chosen))), *(f"{row.scores[split][report.objective]:.4f}" for split in splits)]
    return [*cells, f"{report.shifted(row.scores):.4f}"] if report.shifts else cells


def lines_of(report: SoupReport, recipe: str) -> list[str]:
    """Return the lines about the soup that is written."""
    rows = {row.name: row for row in report.rows}
    soup, best = rows[recipe], rows["best single"]
    lines = [f"{recipe}: {len(set(soup.chosen))} of {len(report.names)} models"]
    if recipe == "greedy":
        lines[0] += f", in this order: {', '.join(report.names[number] for number in soup.chosen)}"
    lines.append(f"best single model: {report.names[best.chosen[0]]}")
    for split, (ours, theirs) in worse_than_single(report, recipe).items():
        lines.append(f"on {split} the soup is worse than the best single model: {ours:.4f} versus {theirs:.4f}")
    advice = advice_of(report, recipe)
    return lines if advice is None else [*lines, advice]


def worse_than_single(report: SoupReport, recipe: str) -> dict[str, tuple[float, float]]:
    """Return split -> scores of a soup and of the best single model, for the splits on which the soup is worse."""
    rows = {row.name: row for row in report.rows}
    worse = {}
    for split in ("validation", "test", *report.shifts):
        ours, theirs = (_score(report, rows[name], split) for name in (recipe, "best single"))
        if ours > theirs if report.mode == "min" else ours < theirs:
            worse[split] = (ours, theirs)
    return worse


def advice_of(report: SoupReport, recipe: str) -> str | None:
    """Return what to do about a soup that is worse than the best single model, or None if it isn't."""
    worse = worse_than_single(report, recipe)
    if not worse:
        return None
    if recipe == "greedy" or "validation" not in worse:
        return "only validation data decides, and other data may disagree: --compare shows all recipes on both"
    why = f"{recipe} doesn't select models"
    if recipe == "learned":
        why = f"learned coefficients lower the loss on validation, not {report.objective}, and drop no model"
    return f"{why}: --recipe greedy does, and on validation it is never worse than the best single model"


def _score(report: SoupReport, row: Row, split: str) -> float:
    return row.scores[split][report.objective]
