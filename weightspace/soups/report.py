"""All recipes side by side, on the data that chose and on the data that did not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.disk import replacing_file
from weightspace.checkpoints.json_file import read_json_object
from weightspace.errors import WeightspaceError
from weightspace.reprs import brief
from weightspace.soups.candidates import Alone, Mean
from weightspace.soups.ensembles import ensembled
from weightspace.soups.greedy import Soup, Tie, Trial, greedily
from weightspace.soups.ingredients import Ingredient, Source, ingredients_of
from weightspace.soups.judging import Judge, Place, Scores
from weightspace.soups.learned import Per, learned_soup
from weightspace.soups.scoring import Statistics
from weightspace.soups.uniform import uniform_soup
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import Task

#: What ``compare_recipes`` can have a row of, in the order of the table.
RECIPES = ("uniform", "greedy", "learned", "ensemble")


@brief
@dataclass(frozen=True)
class Row:
    """A recipe and its scores.

    Attributes:
        name: ``best single``, a recipe, or ``oracle``: the best single model by the test split, which nobody may pick.
        scores: split (or shift) -> name -> score.
        models: how many networks have to be run for it.
        chosen: numbers of its ingredients, from 0.
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    models: int
    chosen: tuple[int, ...]


@brief
@dataclass(frozen=True)
class SoupReport:
    """The recipes, and the ingredients that they were made of.

    Attributes:
        task: its name.
        objective: the score that decides.
        names: of the ingredients.
        singles: split -> what was found of every ingredient.
        rows: a recipe each.
        shifts: names of further test data, where the task has any.
    """

    task: str
    objective: str
    names: tuple[str, ...]
    singles: Mapping[str, tuple[Mapping[str, float], ...]]
    rows: tuple[Row, ...]
    shifts: tuple[str, ...] = ()

    def shifted(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        """Return the mean of the objective over the shifts; NaN if there are none."""
        values = [scores[shift][self.objective] for shift in self.shifts]
        return sum(values) / len(values) if values else float("nan")

    def single(self, number: int) -> dict[str, Mapping[str, float]]:
        """Return the scores of an ingredient, by split."""
        return {split: scores[number] for split, scores in self.singles.items()}

    def save(self, path: str | Path) -> None:
        """Write all of it as ``.json``.

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
        """Read a report that :meth:`save` wrote.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a report of soups.
        """
        try:
            fields = read_json_object(Path(path))
            rows = tuple(Row(**{**row, "chosen": tuple(row["chosen"])}) for row in fields.pop("rows"))
            singles = {split: tuple(scores) for split, scores in fields.pop("singles").items()}
            names, shifts = (tuple(fields.pop(name)) for name in ("names", "shifts"))
            return cls(**fields, names=names, shifts=shifts, rows=rows, singles=singles)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightspaceError(f"{path} isn't a report of soups ({error}).") from error


def compare_recipes(
    states_or_paths: Sequence[Source],
    task: Task,
    recipes: Sequence[str] = RECIPES,
    *,
    tie: Tie = "accept",
    per: Per = "tensor",
    statistics: Statistics = "auto",
    cache: bool = True,
    executor: str = "processes",
    workers: int = 1,
    gpus: float = 0.0,
    ray_address: str | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    on_state: Callable[[str, StateDict], None] | None = None,
) -> SoupReport:
    """Make soups by several recipes and score them, the best single model and the ensemble on validation and test data.

    Only validation data choose. Where the task has ``shifts`` (names of further splits), all is scored on them too.

    Args:
        states_or_paths: state dicts or checkpoints, one or more; out of core as in each recipe.
        task: scores.
        recipes: names in ``RECIPES``.
        tie: of the greedy soup.
        per: of the learned soup.
        statistics: see ``greedy_soup``, and so for ``cache``, ``executor``, ``workers``, ``gpus``, ``ray_address``.
        cache: evaluations; the learned soup is learned each time, and its scores are known by its weights.
        on_trial: told of the evaluations that the greedy soup needs: of the ingredients in any case.
        on_state: given every soup that is made, before the next one.

    Raises:
        CheckpointError: an ingredient cannot be read, or does not belong to the task's network.
        WeightspaceError: there is no such recipe, or as the recipes.
    """
    if bad := [recipe for recipe in recipes if recipe not in RECIPES]:
        raise unknown("recipe", bad[0], RECIPES)
    judge = Judge(task, statistics, cache=cache, cache_key=None, place=Place(executor, workers, gpus, ray_address))
    maker = _Maker(ingredients_of(states_or_paths), task, judge, statistics, on_state)
    try:
        return maker.report(recipes, tie, per, on_trial)
    finally:
        judge.measure.forget()


class _Maker:
    """Makes soups and their rows."""

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        task: Task,
        judge: Judge,
        statistics: Statistics,
        on_state: Callable[[str, StateDict], None] | None,
    ) -> None:
        self.ingredients, self.task, self.judge = ingredients, task, judge
        self.statistics: Statistics = statistics
        self.on_state = on_state
        self.shifts: tuple[str, ...] = tuple(getattr(task, "shifts", ()))
        self.splits: tuple[Any, ...] = ("validation", "test", *self.shifts)

    def report(
        self, recipes: Sequence[str], tie: Tie, per: Per, on_trial: Callable[[Trial], None] | None
    ) -> SoupReport:
        """Return the rows of all recipes, between the best single model and the oracle."""
        soup = greedily(self.ingredients, self.judge, tie=tie, on_trial=on_trial, splits=self.splits)
        singles = self.judge.many([Alone(one) for one in self.ingredients], self.splits)
        rows = [
            self._single("best single", singles, "validation"),
            *(self._row(recipe, soup, per) for recipe in RECIPES if recipe in recipes),
            self._single("oracle", singles, "test"),
        ]
        return SoupReport(
            task=self.task.name,
            objective=self.task.objective,
            names=tuple(one.name for one in self.ingredients),
            singles={split: tuple(scores[split] for scores in singles) for split in self.splits},
            rows=tuple(rows),
            shifts=self.shifts,
        )

    def _row(self, recipe: str, soup: Soup, per: Per) -> Row:
        everyone = tuple(range(len(self.ingredients)))
        if recipe == "ensemble":
            return Row(recipe, ensembled(self.ingredients, self.judge, self.splits), len(everyone), everyone)
        chosen = soup.ingredients if recipe == "greedy" else everyone
        if recipe == "learned":
            scores = self._learned(per)
        else:
            if self.on_state is not None:
                self.on_state(recipe, soup.state if recipe == "greedy" else self._uniform())
            scores = self.judge.one(Mean([self.ingredients[number] for number in chosen]), self.splits)
        return Row(recipe, scores, 1, chosen)

    def _uniform(self) -> StateDict:
        return uniform_soup([one.source for one in self.ingredients], self.task, statistics=self.statistics)

    def _learned(self, per: Per) -> Scores:
        """Learn a soup; its scores are known by its weights."""
        state = learned_soup([one.source for one in self.ingredients], self.task, per, statistics=self.statistics).state
        if self.on_state is not None:
            self.on_state("learned", state)
        return self.judge.one(Alone(Ingredient("the learned soup", state)), self.splits)

    def _single(self, name: str, singles: Sequence[Scores], split: str) -> Row:
        """Return the best model by a split; of equal ones the first."""
        values = [self.judge.value(scores, split) for scores in singles]
        best = max(range(len(values)), key=lambda number: (not math.isnan(values[number]), values[number]))
        return Row(name, singles[best], 1, (best,))
