"""The result of a search: its trials, the best recipe, and the reference merges that it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.checkpoints.output_paths import BEST_RECIPE
from weightspace.errors import WeightspaceError
from weightspace.reprs import brief
from weightspace.searching.noise import Gain
from weightspace.tasks.objectives import Mode


@brief
@dataclass(frozen=True)
class SearchTrial:
    """One candidate of a search.

    Attributes:
        index: its number, from 0.
        values: the searched values, by name.
        scores: task -> its objective on the validation split; empty for an impossible merge.
        share: the fraction of the validation examples that it was scored on; below 1 for one that was dropped.
        error: why the merge is impossible, or empty.
    """

    index: int
    values: Mapping[str, Any]
    scores: Mapping[str, float]
    share: float = 1.0
    error: str = ""


@brief
@dataclass(frozen=True)
class SearchRow:
    """A merge in the table of a search.

    Attributes:
        name: ``best of the search``, or the kind of a reference.
        note: which model, parameter or trial it is.
        scores: task -> split -> name -> score.
        recipe: its recipe as YAML.
    """

    name: str
    note: str
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    recipe: str


@brief
@dataclass(frozen=True)
class SearchReport:
    """A search and its result.

    Attributes:
        engine: name of the engine.
        seed: its seed.
        objectives: task -> name of the score that was searched for; the only one of a function or command is ``score``.
        modes: task -> ``"max"`` if higher is better, else ``"min"``.
        trials: all candidates, in order.
        best: index of the best trial; for several tasks, that of the front with the best mean of scores, each scaled to
            its range on the front.
        front: indices of the trials that no other one beats on all tasks (the Pareto front); the best alone for one.
        rows: the table: references, then the best of the search, on the validation and the test split.
        recipe: the best recipe as YAML.
        gain: the gain over the best reference on the validation split, with its noise; None if it isn't known.
        compared: name of that reference; for several tasks, of one that beats the whole front on the validation data.
        seconds: run time.
        unreferenced: why there are no references, if the recipe has none.
    """

    engine: str
    seed: int
    objectives: Mapping[str, str]
    modes: Mapping[str, Mode]
    trials: tuple[SearchTrial, ...]
    best: int
    front: tuple[int, ...]
    rows: tuple[SearchRow, ...]
    recipe: str
    gain: Gain | None = None
    compared: str = ""
    seconds: float = 0.0
    unreferenced: str = ""

    def save(self, path: str | Path) -> None:
        """Write the report as ``.json``, or the best recipe as ``.yml`` or ``.yaml``.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in (".json", ".yml", ".yaml"):
            raise WeightspaceError(
                f"A search is saved as .json, its best recipe as .yml or .yaml; found {Path(path).name!r}."
            )
        text = (
            json.dumps(asdict(self), indent=1, default=str) + "\n" if suffix == ".json" else BEST_RECIPE + self.recipe
        )
        with replacing_file(Path(path)) as file:
            file.write(text.encode())
