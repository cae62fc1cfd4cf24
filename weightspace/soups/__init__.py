"""Model soups: one network out of many fine-tunes of one model, without more to run than one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.soups.greedy import Soup, Trial, greedy_soup
    from weightspace.soups.ingredients import Ingredient
    from weightspace.soups.learned import LearnedSoup, learned_soup
    from weightspace.soups.running import RunningMean
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
    "LearnedSoup": "learned",
    "learned_soup": "learned",
    "WiseFT": "wise",
    "wise_ft": "wise",
}

__all__ = [
    "Ingredient",
    "LearnedSoup",
    "RunningMean",
    "Soup",
    "Trial",
    "WiseFT",
    "greedy_soup",
    "learned_soup",
    "uniform_soup",
    "wise_ft",
]

__getattr__ = resolver(__name__, _HOMES)
