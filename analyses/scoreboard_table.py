"""Table, answers and picture of the scoreboard, from its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

from merge_settings import LEARNED, ORDERS
from ranks import Ranks, ranks_of

from weightspace.plots.picture import COLOURS, Figure, write_picture

Row: TypeAlias = Mapping[str, Any]
#: Suite and seed.
Block: TypeAlias = "tuple[str, int]"

#: Suite -> score that decides, unit in the table, and what a score is multiplied by there.
UNITS: Mapping[str, tuple[str, str, float]] = {
    "characters": ("loss", "nats", 1),
    "images": ("accuracy", "%", 100),
    "texts": ("accuracy", "%", 100),
}
#: The bar, and the search.
BAR, SEARCH, BEST_TRIAL = ("task_arithmetic", "tuned"), ("search", "search"), ("best trial of all methods", "search")
#: Marks around the results in the page of the docs.
BEGIN, END = "<!-- scoreboard: begin -->", "<!-- scoreboard: end -->"


@dataclass(frozen=True)
class Board:
    """The rows of the scoreboard.

    Attributes:
        rows: label and settings -> suite and seed -> row.
        left_out: label -> reason.
    """

    rows: Mapping[tuple[str, str], Mapping[Block, Row]]
    left_out: Mapping[str, str]

    @property
    def blocks(self) -> list[Block]:
        """Suites and seeds whose rows are complete, search included, by suite."""
        return sorted(self.rows.get(SEARCH, {}))

    @property
    def suites(self) -> list[str]:
        """Suites with complete rows."""
        return list(dict.fromkeys(suite for suite, _ in self.blocks))

    def gain(self, line: tuple[str, str], block: Block, split: str = "test") -> float:
        """Return a score, with the sign such that larger is better."""
        return _signed(self.rows[line][block], split)

    def values(self, line: tuple[str, str], suite: str, split: str = "test") -> list[float]:
        """Return the scores of a line on the seeds of a suite, in the unit of the table."""
        objective, _, factor = UNITS[suite]
        found = self.rows.get(line, {})
        return [
            factor * found[block]["scores"][split][objective] for block in self.blocks if _is_in(block, suite, found)
        ]

    def complete(self, settings: str) -> list[str]:
        """Return the methods that have rows in all blocks; tuned ones count with their defaults if nothing is tuned."""
        methods = [label for label, kind in self.rows if kind == "default"]
        return [label for label in methods if all(block in self._line(label, settings) for block in self.blocks)]

    def ranks(self, settings: str) -> Ranks:
        """Return the ranks of all methods, at their defaults or tuned."""
        labels = self.complete(settings)
        return ranks_of({one: [_signed(self._line(one, settings)[at], "test") for at in self.blocks] for one in labels})

    def mean_gain(self, label: str, over: str, suite: str) -> float:
        """Return the mean gain of a method over another on the test data of a suite's seeds.

        Both are tuned, or both have their defaults if one of them has nothing to tune.
        """
        kind = self.compared(label, over)
        one, other = self._line(label, kind), self._line(over, kind)
        return mean(_signed(one[at], "test") - _signed(other[at], "test") for at in self.blocks if at[0] == suite)

    def compared(self, label: str, over: str) -> str:
        """Return the settings at which two methods are compared."""
        return "tuned" if all((one, "tuned") in self.rows for one in (label, over)) else "default"

    def _line(self, label: str, settings: str) -> Mapping[Block, Row]:
        return self.rows.get((label, settings)) or self.rows[label, "default"]


def board_of(rows: Iterable[Row]) -> Board:
    """Return the board of rows, with the best trial of all tuned methods as a further row."""
    lines: dict[tuple[str, str], dict[Block, Row]] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        if "left out" in row:
            left_out[row["label"]] = row["left out"]
        else:
            lines.setdefault((row["label"], row["settings"]), {})[row["suite"], row["seed"]] = row
    tuned = [(line, found) for line, found in lines.items() if line[1] in ("default", "tuned")]
    for block in lines.get(SEARCH, {}):
        there = {line: found[block] for line, found in tuned if block in found}
        if there:
            line = max(there, key=lambda one: _signed(there[one], "validation"))
            lines.setdefault(BEST_TRIAL, {})[block] = {**there[line], "of": " ".join(line)}
    return Board(lines, left_out)


def _signed(row: Row, split: str) -> float:
    objective = UNITS[row["suite"]][0]
    score = row["scores"][split][objective]
    return -score if objective == "loss" else score


def _is_in(block: Block, suite: str, found: Mapping[Block, Row]) -> bool:
    return block[0] == suite and block in found


def table(board: Board) -> list[str]:
    """Return the table in Markdown: references, methods by their tuned mean rank, then the searches."""
    suites = board.suites
    default, tuned = board.ranks("default"), board.ranks("tuned")
    heads = [f"{suite}, {UNITS[suite][1]}: {kind}" for suite in suites for kind in ("defaults", "tuned")]
    lines = [f"| | {' | '.join(heads)} | rank: defaults | tuned |", "|---" * (len(heads) + 3) + "|"]
    references = [line for line in board.rows if line[1] == "reference" and not line[0].startswith("only ")]
    lines += [_line(_reference_name(line[0]), board, (line, None)) for line in references]
    lines.append(_single_line(board))
    for label in sorted(tuned.means, key=lambda one: (tuned.means[one], one)):
        name = f"`{label}` (learned)" if label in LEARNED else f"`{label}`"
        cells = _line(name, board, ((label, "default"), (label, "tuned")))
        own = f"{default.means[label]:.1f}" if label in default.means else "–"
        lines.append(cells.removesuffix(" – | – |") + f" {own} | {tuned.means[label]:.1f} |")
    lines += [_line(line[0], board, (None, line)) for line in (SEARCH, BEST_TRIAL) if line in board.rows]
    return lines


def _reference_name(label: str) -> str:
    return {"own task": "each fine-tune on its own task"}.get(label, label)


def _line(name: str, board: Board, lines: Sequence[tuple[str, str] | None]) -> str:
    cells = [_cell(board.values(line, suite), suite) if line else "–" for suite in board.suites for line in lines]
    return f"| {name} | {' | '.join(cells)} | – | – |"


def _single_line(board: Board) -> str:
    """Return the line of the fine-tune that is best on the validation data of all tasks."""
    singles = [line for line in board.rows if line[0].startswith("only ")]
    cells = []
    for suite in board.suites:
        objective, _, factor = UNITS[suite]
        values = []
        for block in board.blocks:
            there = [line for line in singles if block in board.rows[line] and block[0] == suite]
            if there:
                best = max(there, key=lambda line: board.gain(line, block, "validation"))
                values.append(factor * board.rows[best][block]["scores"]["test"][objective])
        cells += [_cell(values, suite), "–"]
    return f"| best single fine-tune | {' | '.join(cells)} | – | – |"


def _cell(values: Sequence[float], suite: str) -> str:
    if not values:
        return "–"
    digits = _digits(suite)
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _digits(suite: str) -> int:
    """Return the number of decimals of scores in the table."""
    return 3 if UNITS[suite][0] == "loss" else 1


def answers(board: Board) -> list[str]:
    """Return for both searches whether they beat tuned task arithmetic on test data, suite by suite."""
    found = []
    for line in (SEARCH, BEST_TRIAL):
        wins = 0
        for suite in board.suites:
            blocks = [block for block in board.blocks if block[0] == suite]
            gains = [UNITS[suite][2] * (board.gain(line, at) - board.gain(BAR, at)) for at in blocks]
            wins += mean(gains) > 0
            listed = ", ".join(f"{gain:+.{_digits(suite)}f}" for gain in gains)
            found.append(
                f"{line[0]} − tuned task arithmetic, {suite}, test: {listed} {UNITS[suite][1]} (higher is better)"
            )
        found.append(f"{line[0]}: above tuned task arithmetic in the mean of {wins} of {len(board.suites)} suites")
    return found


def orders(board: Board) -> list[str]:
    """Return for every published order of two methods the suites in which it holds in the mean of the test data."""
    known, found = board.complete("tuned"), []
    for better, worse, source in ORDERS:
        if better in known and worse in known:
            gains = {suite: board.mean_gain(better, worse, suite) for suite in board.suites}
            holds, fails = ([one for one in gains if (gains[one] > 0) == side] for side in (True, False))
            parts = [f"holds in {_with_gains(holds, gains)}"] if holds else []
            parts += [f"does NOT hold in {_with_gains(fails, gains)}"] if fails else []
            how = "" if board.compared(better, worse) == "tuned" else ", both at their defaults"
            found.append(f"`{better}` above `{worse}` ({source}){how}: {'; '.join(parts)}")
    return found


def _with_gains(suites: Sequence[str], gains: Mapping[str, float]) -> str:
    """Return the names of suites, each with its gain in the unit of the table."""
    units = {suite: UNITS[suite] for suite in suites}
    return ", ".join(
        f"{suite} ({factor * gains[suite]:+.{_digits(suite)}f} {unit})" for suite, (_, unit, factor) in units.items()
    )


def verdict(ranks: Ranks, settings: str) -> str:
    """Return Friedman's and Nemenyi's results as a sentence."""
    if ranks.blocks < 2:
        return f"{settings}: {len(ranks.means)} methods, one block: ranks are not tested"
    near = ranks.near_best
    others = [f"`{label}`" for label in sorted(ranks.means, key=lambda one: ranks.means[one]) if label not in near]
    return (
        f"{settings}: {len(ranks.means)} methods, {ranks.blocks} blocks, Friedman p = {ranks.p_value:.2g}, critical "
        f"difference {ranks.critical:.1f}; different from the best rank, that of `{near[0]}`: "
        f"{', '.join(others) or 'none'}"
    )


def write_page(path: Path, board: Board, sentences: Sequence[str]) -> None:
    """Replace the results in the page of the docs, between its two marks, by the table, the answers and the picture."""
    seeds = {suite: sum(1 for at in board.blocks if at[0] == suite) for suite in UNITS}
    counts = ", ".join(f"{suite}: {count or 'none'}" for suite, count in seeds.items())
    picture = "![Gains over tuned task arithmetic by suite, and mean ranks](../../analyses/figures/scoreboard.png)"
    left = [f"| `{label}` | {reason} |" for label, reason in sorted(board.left_out.items())]
    lines = [
        f"Complete seeds: {counts}. Means and standard deviations over the seeds; *characters*: lower is better.",
        "",
        *table(board),
        "",
        picture,
        "",
        *(f"- {sentence}" for sentence in sentences),
        "",
        *(["| left out | reason |", "|---|---|", *left] if left else []),
    ]
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{chr(10).join(lines).rstrip()}\n{END}{after}", encoding="utf-8")


def draw(board: Board, path: Path) -> None:
    """Draw the gains over tuned task arithmetic in every suite, and the mean ranks with their critical difference."""
    write_picture(path, lambda: _figure(board))


def _figure(board: Board) -> Figure:
    tuned, default = board.ranks("tuned"), board.ranks("default")
    labels = sorted(tuned.means, key=lambda one: (-tuned.means[one], one))
    suites = board.suites
    figure = Figure(figsize=(2.5 * len(suites) + 5.2, 0.22 * len(labels) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(suites) + 1, squeeze=False, sharey=True)[0]
    for axes, suite in zip(panels, suites, strict=False):
        _draw_gains(axes, board, suite, labels)
    axes, best = panels[-1], min(tuned.means.values())
    axes.axvspan(best, best + tuned.critical, color="#ECECEC", label="critical difference from the best")
    places = range(len(labels))
    axes.plot([default.means.get(one, float("nan")) for one in labels], places, "o", color=COLOURS[0], fillstyle="none")
    axes.plot([tuned.means[one] for one in labels], places, "o", color=COLOURS[1])
    axes.set_title("mean rank", loc="left")
    axes.set_xlabel(f"1 is best; grey: not different\nfrom the best (Nemenyi, {tuned.blocks} blocks)")
    panels[0].set_yticks(list(places), labels)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_gains(axes: Any, board: Board, suite: str, labels: Sequence[str]) -> None:
    """Draw the mean gain of every method over tuned task arithmetic, and its deviation over the seeds.

    Defaults far below all tuned methods are drawn as arrows at the edge.
    """
    factor = UNITS[suite][2]
    blocks = [block for block in board.blocks if block[0] == suite]

    def gains(line: tuple[str, str]) -> list[float]:
        found = board.rows.get(line, {})
        return [factor * (board.gain(line, at) - board.gain(BAR, at)) for at in blocks if at in found]

    tuned = [mean(found) for label in labels if (found := gains((label, "tuned")))]
    least = 1.3 * min([*tuned, -0.02 * factor])
    for settings, colour, fill in (("default", COLOURS[0], "none"), ("tuned", COLOURS[1], "full")):
        for place, label in enumerate(labels):
            if found := gains((label, settings)):
                middle, spread = mean(found), stdev(found) if len(found) > 1 else 0.0
                name = {"default": "defaults", "tuned": "tuned by eight trials"}[settings] if place == 0 else None
                style: dict[str, Any] = {"color": colour, "fillstyle": fill, "ms": 5, "label": name}
                if middle < least:
                    axes.plot(least, place, "<", clip_on=False, **style)
                else:
                    axes.errorbar(middle, place, xerr=spread, fmt="o", lw=1, **style)
    axes.axvline(mean(gains(SEARCH)), color=COLOURS[2], lw=0.9, ls="--", label="search")
    axes.axvline(0, color="#555555", lw=0.8)
    axes.set_xlim(left=least)
    axes.set_title(suite, loc="left")
    axes.set_xlabel(f"gain over tuned task\narithmetic, {UNITS[suite][1]}")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
