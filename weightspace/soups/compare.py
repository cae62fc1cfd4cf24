"""Comparison of soup recipes on validation data, used for selection, and on test data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.checkpoints.json_file import read_json_object
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.soups.candidates import Alone, Mean
from weightspace.soups.ensemble import ensembled
from weightspace.soups.evaluation import Judge, Place, Scores
from weightspace.soups.greedy import Soup, Tie, greedily, score_ingredients
from weightspace.soups.ingredients import Ingredient, Source, ingredients_of
from weightspace.soups.learned import learned_soup
from weightspace.soups.mixture import Per
from weightspace.soups.model_stock import model_stock_soup
from weightspace.soups.scoring import Statistics
from weightspace.soups.uniform import uniform_soup
from weightspace.suggestions import unknown
from weightspace.tasks.objectives import Mode, mode_of_name
from weightspace.tasks.protocol import Task

#: Recipes of ``compare_recipes``, in the order of the table.
RECIPES = ("uniform", "greedy", "learned", "model_stock", "ensemble")
#: Recipes that need the pretrained model.
FROM_BASE = ("model_stock",)
#: Names of the rows of single models: the best on validation data, and the best on test data (an oracle).
BEST, BEST_ON_TEST = "best single", "best single on test"
#: A recipe is far below the best single model if it is worse by more than this fraction of its score, and worse than
#: all single models.
_FAR = 0.05


@brief
@dataclass(frozen=True)
class Row:
    """A recipe and its scores.

    Attributes:
        name: ``best single`` (on the validation split), a recipe, or ``best single on test``, an oracle, as the test
            split must not be used for selection.
        scores: split (or shift) -> name -> score.
        models: number of networks to run at inference.
        chosen: indices of its ingredients, from 0; they may repeat in a greedy soup with replacement.
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    models: int
    chosen: tuple[int, ...]


@brief
@dataclass(frozen=True)
class SoupReport:
    """Scores of the recipes and of their ingredients.

    Attributes:
        task: name of the task.
        objective: name of the score that decides.
        mode: ``"max"`` if higher is better, else ``"min"``.
        names: names of the ingredients.
        singles: split -> scores of each ingredient.
        rows: one row per recipe.
        shifts: names of additional test data, if the task has any.
    """

    task: str
    objective: str
    names: tuple[str, ...]
    singles: Mapping[str, tuple[Mapping[str, float], ...]]
    rows: tuple[Row, ...]
    shifts: tuple[str, ...] = ()
    mode: Mode = "max"

    def shifted(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        """Return the mean of the objective over the shifts; NaN if there are none."""
        values = [scores[shift][self.objective] for shift in self.shifts]
        return sum(values) / len(values) if values else float("nan")

    def far_below(self) -> dict[str, tuple[float, float]]:
        """Return the recipes far worse than the best single model: name -> its validation score, and that of the best.

        Far worse means worse than all single models and by more than 5 % of the best score.
        """
        sign = -1 if self.mode == "min" else 1
        singles = [sign * scores[self.objective] for scores in self.singles["validation"]]
        values = [value for value in singles if not math.isnan(value)]
        if not values:
            return {}
        room, best = max(max(values) - min(values), _FAR * abs(max(values))), max(values)
        scores = {row.name: row.scores["validation"][self.objective] for row in self.rows if row.name in RECIPES}
        return {name: (score, sign * best) for name, score in scores.items() if not best - sign * score <= room}

    def single(self, number: int) -> dict[str, Mapping[str, float]]:
        """Return the scores of an ingredient, by split."""
        return {split: scores[number] for split, scores in self.singles.items()}

    def save(self, path: str | Path) -> None:
        """Write the report as ``.json``.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        if Path(path).suffix.lower() != ".json":
            raise WeightspaceError(f"A report of soups is a .json file; found {Path(path).name!r}.")
        with replacing_file(Path(path)) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> SoupReport:
        """Read a report written by :meth:`save`.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a report of soups.
        """
        try:
            fields = read_json_object(Path(path))
            rows = tuple(Row(**{**row, "chosen": tuple(row["chosen"])}) for row in fields.pop("rows"))
            singles = {split: tuple(scores) for split, scores in fields.pop("singles").items()}
            names, shifts = (tuple(fields.pop(name)) for name in ("names", "shifts"))
            fields.setdefault("mode", mode_of_name(fields["objective"]) or "max")  # older files have no mode
            return cls(**fields, names=names, shifts=shifts, rows=rows, singles=singles)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightspaceError(f"{path} isn't a report of soups ({error}).") from error


def compare_recipes(
    states_or_paths: Sequence[Source],
    task: Task,
    recipes: Sequence[str] | None = None,
    *,
    tie: Tie = "accept",
    replacement: bool = False,
    per: Per = "tensor",
    base: Source | None = None,
    mode: Mode | None = None,
    statistics: Statistics = "auto",
    cache: bool = True,
    executor: str = "processes",
    workers: int = 1,
    gpus: float = 0.0,
    ray_address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_state: Callable[[str, StateDict], None] | None = None,
) -> SoupReport:
    """Score soups by several recipes, the best single model and the ensemble on validation and test data.

    Selection uses only validation data. If the task has ``shifts`` (names of further splits), they are scored too.

    Args:
        states_or_paths: state dicts or checkpoints, one or more; memory use is that of each recipe.
        task: task that scores the networks.
        recipes: names in ``RECIPES``; by default all, those that need a base only if it is given.
        tie: as for ``greedy_soup``.
        replacement: whether the greedy soup may use ingredients more than once.
        per: as for ``learned_soup``.
        base: the pretrained model, for ``model_stock``.
        mode: ``"min"`` or ``"max"`` of the objective; see ``greedy_soup``.
        statistics: see ``greedy_soup``, also for ``executor``, ``workers``, ``gpus`` and ``ray_address``.
        cache: whether to cache evaluations; learned soups are learned anew, and their scores cached by their weights.
        on_progress: called with each ``"trial"``: the ingredients, and the candidates of a greedy soup.
        on_state: called with the name and the weights of each soup, before the next one is made.

    Raises:
        CheckpointError: an ingredient cannot be read, or doesn't match the task's network.
        WeightspaceError: a recipe is unknown, or as for the recipes.
    """
    if recipes is None:
        recipes = [recipe for recipe in RECIPES if base is not None or recipe not in FROM_BASE]
    if bad := [recipe for recipe in recipes if recipe not in RECIPES]:
        raise unknown("recipe", bad[0], RECIPES)
    if base is None and (lacking := [recipe for recipe in recipes if recipe in FROM_BASE]):
        raise WeightspaceError(f"Recipe {lacking[0]!r} starts from the pretrained model; pass base= (--base).")
    place = Place(executor, workers, gpus, ray_address)
    judge = Judge(task, statistics, cache=cache, cache_key=None, place=place, mode=mode)
    ingredients = ingredients_of(states_or_paths, judge.measure.shapes)
    maker = _Maker(ingredients, task, judge, statistics, base, on_state)
    try:
        return maker.report(recipes, tie, per, on_progress, replacement=replacement)
    finally:
        judge.measure.forget()


class _Maker:
    """Maker of soups and their rows."""

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        task: Task,
        judge: Judge,
        statistics: Statistics,
        base: Source | None,
        on_state: Callable[[str, StateDict], None] | None,
    ) -> None:
        self.ingredients, self.task, self.judge = ingredients, task, judge
        self.statistics: Statistics = statistics
        self.base, self.on_state = base, on_state
        self.shifts: tuple[str, ...] = tuple(getattr(task, "shifts", ()))
        self.splits: tuple[Any, ...] = ("validation", "test", *self.shifts)

    def report(
        self,
        recipes: Sequence[str],
        tie: Tie,
        per: Per,
        on_progress: Callable[[Progress], None] | None,
        *,
        replacement: bool,
    ) -> SoupReport:
        """Return the report, with the best single model first and the oracle last."""
        search: dict[str, Any] = {"on_progress": on_progress, "splits": self.splits}
        soup = None
        if "greedy" in recipes:
            soup = greedily(self.ingredients, self.judge, tie=tie, replacement=replacement, **search)
        else:
            score_ingredients(self.ingredients, self.judge, **search)
        singles = self.judge.many([Alone(one) for one in self.ingredients], self.splits)
        rows = [
            self._single(BEST, singles, "validation"),
            *(self._row(recipe, soup, per) for recipe in RECIPES if recipe in recipes),
            self._single(BEST_ON_TEST, singles, "test"),
        ]
        return SoupReport(
            task=self.task.name,
            objective=self.task.objective,
            names=tuple(one.name for one in self.ingredients),
            singles={split: tuple(scores[split] for scores in singles) for split in self.splits},
            rows=tuple(rows),
            shifts=self.shifts,
            mode=self.judge.measure.mode,
        )

    def _row(self, recipe: str, soup: Soup | None, per: Per) -> Row:
        everyone = tuple(range(len(self.ingredients)))
        if recipe == "ensemble":
            return Row(recipe, ensembled(self.ingredients, self.judge, self.splits), len(everyone), everyone)
        chosen = everyone if soup is None or recipe != "greedy" else soup.ingredients
        if recipe in ("learned", "model_stock"):
            scores = self._made(recipe, self._learned(per) if recipe == "learned" else self._model_stock())
        else:
            if self.on_state is not None:
                self.on_state(recipe, self._uniform() if soup is None or recipe != "greedy" else soup.state)
            scores = self.judge.one(Mean([self.ingredients[number] for number in chosen]), self.splits)
        return Row(recipe, scores, 1, chosen)

    def _uniform(self) -> StateDict:
        return uniform_soup([one.source for one in self.ingredients], self.task, statistics=self.statistics)

    def _learned(self, per: Per) -> StateDict:
        return learned_soup([one.source for one in self.ingredients], self.task, per, statistics=self.statistics).state

    def _model_stock(self) -> StateDict:
        sources, base = [one.source for one in self.ingredients], self.base
        if base is None:
            raise WeightspaceError("Model Stock starts from the pretrained model; found no base.")
        return model_stock_soup(sources, base, self.task, statistics=self.statistics)

    def _made(self, recipe: str, state: StateDict) -> Scores:
        """Return the scores of a complete soup, cached by its weights."""
        if self.on_state is not None:
            self.on_state(recipe, state)
        return self.judge.one(Alone(Ingredient(f"the {recipe} soup", state, self.judge.measure.shapes)), self.splits)

    def _single(self, name: str, singles: Sequence[Scores], split: str) -> Row:
        """Return the row of the best single model on a split; ties go to the first."""
        values = [self.judge.value(scores, split) for scores in singles]
        best = max(range(len(values)), key=lambda number: (not math.isnan(values[number]), values[number]))
        return Row(name, singles[best], 1, (best,))
