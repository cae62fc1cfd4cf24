"""Model soups: fine-tunes of one model averaged into one network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.soups.adamerging import AdaMerged, AdaMergingOptions, adamerging
    from weightspace.soups.compare import RECIPES, Row, SoupReport, compare_recipes
    from weightspace.soups.ensemble import ensemble
    from weightspace.soups.fingerprints import fingerprint_of_data, fingerprint_of_state, fingerprint_of_task
    from weightspace.soups.flatness import Flatness, Gain, angle, flatness, gain
    from weightspace.soups.greedy import Soup, Trial, greedy_soup
    from weightspace.soups.ingredients import Ingredient
    from weightspace.soups.learned import LearnedSoup, learned_soup
    from weightspace.soups.localization import LocalizationOptions, Localized, localize_and_stitch
    from weightspace.soups.model_stock import model_stock_soup
    from weightspace.soups.running_mean import RunningMean
    from weightspace.soups.soup_vs_ensemble import Agreement, SoupAgainstEnsemble, agreement, soup_against_ensemble
    from weightspace.soups.uniform import uniform_soup
    from weightspace.soups.wise_ft import WiseFT, wise_ft

#: Public name -> the module that defines it.
_HOMES = {
    "AdaMerged": "adamerging",
    "AdaMergingOptions": "adamerging",
    "adamerging": "adamerging",
    "Ingredient": "ingredients",
    "RunningMean": "running_mean",
    "uniform_soup": "uniform",
    "Soup": "greedy",
    "Trial": "greedy",
    "greedy_soup": "greedy",
    "LearnedSoup": "learned",
    "LocalizationOptions": "localization",
    "Localized": "localization",
    "localize_and_stitch": "localization",
    "model_stock_soup": "model_stock",
    "learned_soup": "learned",
    "WiseFT": "wise_ft",
    "wise_ft": "wise_ft",
    "ensemble": "ensemble",
    "RECIPES": "compare",
    "Row": "compare",
    "SoupReport": "compare",
    "compare_recipes": "compare",
    "Agreement": "soup_vs_ensemble",
    "SoupAgainstEnsemble": "soup_vs_ensemble",
    "agreement": "soup_vs_ensemble",
    "soup_against_ensemble": "soup_vs_ensemble",
    "Flatness": "flatness",
    "Gain": "flatness",
    "angle": "flatness",
    "flatness": "flatness",
    "gain": "flatness",
    "fingerprint_of_data": "fingerprints",
    "fingerprint_of_state": "fingerprints",
    "fingerprint_of_task": "fingerprints",
}

__all__ = [
    "RECIPES",
    "AdaMerged",
    "AdaMergingOptions",
    "Agreement",
    "Flatness",
    "Gain",
    "Ingredient",
    "LearnedSoup",
    "LocalizationOptions",
    "Localized",
    "Row",
    "RunningMean",
    "Soup",
    "SoupAgainstEnsemble",
    "SoupReport",
    "Trial",
    "WiseFT",
    "adamerging",
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
    "localize_and_stitch",
    "model_stock_soup",
    "soup_against_ensemble",
    "uniform_soup",
    "wise_ft",
]

__getattr__ = resolver(__name__, _HOMES)
