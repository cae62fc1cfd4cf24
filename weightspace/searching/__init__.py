"""Search for the best merge: recipes with ranges, engines that choose values, and scores on validation data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.searching.command_score import CommandScore
    from weightspace.searching.lm_eval import LmEvalScore
    from weightspace.searching.report import SearchReport, SearchRow, SearchTrial
    from weightspace.searching.search import SearchOptions, search

#: Public name -> the file that defines it.
_HOMES = {
    "CommandScore": "command_score",
    "LmEvalScore": "lm_eval",
    "SearchOptions": "search",
    "SearchReport": "report",
    "SearchRow": "report",
    "SearchTrial": "report",
    "search": "search",
}

__all__ = ["CommandScore", "LmEvalScore", "SearchOptions", "SearchReport", "SearchRow", "SearchTrial", "search"]

__getattr__ = resolver(__name__, _HOMES)
