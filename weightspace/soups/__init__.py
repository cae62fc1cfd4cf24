"""Model soups: one network out of many fine-tunes of one model, without more to run than one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.soups.around import Flatness, Gain, angle, flatness, gain
    from weightspace.soups.ensembles import ensemble
    from weightspace.soups.fingerprints import fingerprint_of_data, fingerprint_of_state, fingerprint_of_task
    from weightspace.soups.greedy import Soup, Trial, greedy_soup
    from weightspace.soups.ingredients import Ingredient
    from weightspace.soups.learned import EpochOfSoup, LearnedSoup, learned_soup
    from weightspace.soups.prediction import Agreement, SoupAgainstEnsemble, agreement, soup_against_ensemble
    from weightspace.soups.report import RECIPES, Row, SoupReport, compare_recipes
    from weightspace.soups.running import RunningMean
    from weightspace.soups.stock import model_stock_soup
    from weightspace.soups.uniform import uniform_soup
    from weightspace.soups.wise import WiseFT, wise_ft

#: Public name -> the file that defines it.
_HOMES = {
    "Ingredient": "ingredients",
    "RunningMean": "running",
    "uniform_soup": "uniform",
    "Soup": "greedy",
    "Trial": "greedy",
    "greedy_soup": "greedy",
    "EpochOfSoup": "learned",
    "LearnedSoup": "learned",
    "model_stock_soup": "stock",
    "learned_soup": "learned",
    "WiseFT": "wise",
    "wise_ft": "wise",
    "ensemble": "ensembles",
    "RECIPES": "report",
    "Row": "report",
    "SoupReport": "report",
    "compare_recipes": "report",
    "Agreement": "prediction",
    "SoupAgainstEnsemble": "prediction",
    "agreement": "prediction",
    "soup_against_ensemble": "prediction",
    "Flatness": "around",
    "Gain": "around",
    "angle": "around",
    "flatness": "around",
    "gain": "around",
    "fingerprint_of_data": "fingerprints",
    "fingerprint_of_state": "fingerprints",
    "fingerprint_of_task": "fingerprints",
}

__all__ = [
    "RECIPES",
    "Agreement",
    "EpochOfSoup",
    "Flatness",
    "Gain",
    "Ingredient",
    "LearnedSoup",
    "Row",
    "RunningMean",
    "Soup",
    "SoupAgainstEnsemble",
    "SoupReport",
    "Trial",
    "WiseFT",
    "agreement",
    "angle",
    "compare_recipes",
    "ensemble",
    "fingerprint_of_data",
    "fingerprint_of_state",
    "fingerprint_of_task",
    "flatness",
    "gain",
    "greedy_soup",
    "learned_soup",
    "model_stock_soup",
    "soup_against_ensemble",
    "uniform_soup",
    "wise_ft",
]

__getattr__ = resolver(__name__, _HOMES)
