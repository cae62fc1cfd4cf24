"""Noun synsets of WordNet 3.0 and their hypernym graph, in which a synset may have several parents.

A synset is named as in ``dog.n.01``: its first lemma and the number of its sense among that lemma's. Its id,
``n02084071``, is its offset in ``data.noun``; ImageNet uses the ids of version 3.0.

Source:
    Fellbaum (ed.) 1998, WordNet, https://wordnet.princeton.edu; the format is that of wndb(5WN).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from weightspace.checkpoints.atomic_write import check_regular
from weightspace.errors import WeightspaceError
from weightspace.labels.names import Names
from weightspace.labels.parsing import adjacency_of
from weightspace.labels.rules.shortest_paths import Graph
from weightspace.suggestions import unknown

#: Folder of the Debian package ``wordnet-base``.
DEBIAN_FOLDER = Path("/usr/share/wordnet")
_ABOVE = ("@", "@i")


@dataclass(frozen=True)
class WordNet:
    """Synsets in the order of their ids.

    Attributes:
        ids: ``n`` and eight digits, as in ``n02084071``.
        names: names as in ``dog.n.01``.
        glosses: definitions.
        above: pairs of positions, (synset, hypernym), int64 (edges, 2).
        senses: lemma in lower case -> positions, the most frequent sense first.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    glosses: tuple[str, ...]
    above: np.ndarray
    senses: dict[str, tuple[int, ...]]

    def position(self, name: str) -> int:
        """Return the position of an id, a synset name such as ``dog.n.01``, or the first sense of a word.

        Raises:
            WeightspaceError: there is no such synset.
        """
        if name in self._places:
            return self._places[name]
        found = self.senses.get(name.lower().replace(" ", "_"))
        if found is None:
            raise unknown("synset", name, self.senses if name[:1].isalpha() and not name[1:].isdigit() else self.ids)
        return found[0]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for listed in (self.names, self.ids) for place, name in enumerate(listed)}


def wordnet_folder(folder: str | Path | None = None) -> Path:
    """Return the folder of the database: the given one, else ``$WEIGHTSPACE_WORDNET``, else Debian's.

    Raises:
        WeightspaceError: a file is missing in it.
    """
    named = folder or os.environ.get("WEIGHTSPACE_WORDNET")
    found = Path(named) if named else DEBIAN_FOLDER
    for file in ("data.noun", "index.noun"):
        if not (found / file).is_file():
            raise WeightspaceError(
                f"WordNet isn't in {found} ({file} is missing): apt-get install wordnet-base, or specify the folder of "
                "WordNet 3.0's dict files."
            )
    return found


@lru_cache(maxsize=1)
def read_wordnet(folder: Path) -> WordNet:
    """Read the nouns.

    Raises:
        WeightspaceError: a file cannot be read or has another format.
    """
    try:
        for name in ("data.noun", "index.noun"):
            check_regular(folder / name)
        lines = (folder / "data.noun").read_text(encoding="latin-1").splitlines()
        rows = [_synset(line) for line in lines if not line.startswith(" ")]
        senses = dict(_senses((folder / "index.noun").read_text(encoding="latin-1")))
        return _connected(rows, senses)
    except (OSError, ValueError, IndexError) as error:
        raise WeightspaceError(f"{folder} isn't WordNet's dict folder ({error}); expected version 3.0.") from error
    except KeyError as error:
        raise WeightspaceError(
            f"{folder} isn't WordNet's dict folder: there is no synset {error}; expected version 3.0."
        ) from error


def _connected(rows: list[tuple[str, str, list[str], str]], senses: dict[str, list[str]]) -> WordNet:
    """Build the database from synsets (offset, first lemma, hypernyms, gloss) and from lemmas with their synsets."""
    place = {row[0]: position for position, row in enumerate(rows)}
    places = {lemma: tuple(place[offset] for offset in offsets) for lemma, offsets in senses.items()}
    names = [f"{lemma}.n.{places[lemma].index(position) + 1:02d}" for position, (_, lemma, _, _) in enumerate(rows)]
    above = [(position, place[offset]) for position, row in enumerate(rows) for offset in row[2]]
    return WordNet(
        ids=tuple(f"n{row[0]}" for row in rows),
        names=tuple(names),
        glosses=tuple(row[3] for row in rows),
        above=np.asarray(above, dtype=np.int64).reshape(-1, 2),
        senses=places,
    )


def _synset(line: str) -> tuple[str, str, list[str], str]:
    """Parse a line into offset, first lemma, offsets of hypernyms, and gloss."""
    data, _, gloss = line.partition(" | ")
    fields = data.split(" ")
    words = int(fields[3], 16)
    at = 4 + 2 * words
    pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
    above = [offset for symbol, offset, part, _ in pointers if symbol in _ABOVE and part == "n"]
    return fields[0], fields[4].lower(), above, gloss.strip()


def _senses(text: str) -> Iterable[tuple[str, list[str]]]:
    for line in text.splitlines():
        if not line.startswith(" "):
            fields = line.split()
            yield fields[0], fields[-int(fields[2]) :]


def wordnet_labels(
    names: Iterable[str] | None, *, ancestors: bool, folder: str | Path | None
) -> tuple[Names, Graph, np.ndarray | None]:
    """Return labels, the graph of all nouns, and the labels' nodes in it (None: all)."""
    wordnet = read_wordnet(wordnet_folder(folder))
    nodes = len(wordnet.ids)
    u, v = wordnet.above.T
    graph = adjacency_of(nodes, u, v, np.ones(len(u)))
    if names is None:
        return Names(wordnet.names), graph, None
    if isinstance(names, str):
        raise WeightspaceError(f"The synsets must be a list of names; found the string {names!r}.")
    labels = Names(names)
    places = [wordnet.position(str(label)) for label in labels]
    if len(set(places)) != len(places):
        first_at: dict[int, int] = {}
        twice = next(i for i, place in enumerate(places) if first_at.setdefault(place, i) != i)
        first = first_at[places[twice]]
        raise WeightspaceError(
            f"{labels[first]!r} and {labels[twice]!r} are the same synset, {wordnet.ids[places[twice]]}."
        )
    if ancestors:
        more = _ancestors(wordnet, places)
        labels, places = Names([*labels, *(wordnet.names[place] for place in more)]), [*places, *more]
    return labels, graph, np.asarray(places, dtype=np.int64)


def _ancestors(wordnet: WordNet, places: list[int]) -> list[int]:
    """Return the ancestors of the given synsets, in the order of their ids."""
    above: dict[int, list[int]] = {}
    for child, parent in wordnet.above.tolist():
        above.setdefault(child, []).append(parent)
    queue, seen = list(places), set(places)
    for place in queue:
        for parent in above.get(place, ()):
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return sorted(queue[len(places) :])
