"""Definitions and example sentences of WordNet 3.0, of all parts of speech.

A gloss is one or more definitions and then examples in quotes: ``breathe with difficulty; "She choked with emotion"``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from weightspace.labels.wordnet import wordnet_folder

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
_QUOTED = re.compile(r'"([^"]+)"')


def definitions(part_of_speech: str, folder: Path | None = None) -> list[str]:
    """Return the definitions of all synsets of a part of speech, in the order of the file."""
    return [
        gloss.partition('"')[0].strip().rstrip(";:, ") for gloss in _glosses(part_of_speech, wordnet_folder(folder))
    ]


def examples(folder: Path | None = None) -> list[str]:
    """Return the example sentences of all parts of speech."""
    glosses = [gloss for part in PARTS_OF_SPEECH for gloss in _glosses(part, wordnet_folder(folder))]
    return [sentence.strip() for gloss in glosses for sentence in _QUOTED.findall(gloss)]


@lru_cache(maxsize=8)
def _glosses(part_of_speech: str, folder: Path) -> Sequence[str]:
    lines = (folder / f"data.{part_of_speech}").read_text(encoding="latin-1").splitlines()
    return [line.partition(" | ")[2].strip() for line in lines if not line.startswith(" ")]
