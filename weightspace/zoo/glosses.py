"""The glosses of WordNet's nouns, 6 million characters of English definitions, for character language models.

The folder is the given one, ``$WEIGHTSPACE_WORDNET``, or that of Debian's package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from weightspace.labels.wordnet import read_wordnet, wordnet_folder
from weightspace.tasks.protocol import Split, TrainConfig
from weightspace.zoo.language_task import LanguageTask
from weightspace.zoo.llama import Llama

#: The tokens: the end of a gloss, any rare character, then the frequent ones in lower case.
CHARACTERS = "\n\N{REPLACEMENT CHARACTER} \"'(),-.0123456789:;`abcdefghijklmnopqrstuvwxyz"
#: Characters that a network sees at most.
_LENGTH = 64
#: Synsets of each of the splits test and validation.
_HELD_OUT = 1_500


def llama_glosses(data: Path | None = None, *, width: int = 96) -> LanguageTask:
    """Return the task ``llama-glosses``: a Llama of three layers and 64 characters, 1.46 nats in about four minutes.

    Args:
        data: WordNet's folder.
        width: features of the residual stream, a multiple of 8; the four heads share two pairs of keys and values.
    """
    return LanguageTask(
        name="llama-glosses",
        build=partial(
            Llama, vocabulary=len(CHARACTERS), length=_LENGTH, width=width, depth=3, heads=4, groups=2,
            hidden=width * 8 // 3,
        ),
        load=partial(gloss_sequences, wordnet_folder(data)),
        batch_size=48,
        epoch=150,
        recipe=TrainConfig(epochs=10, learning_rate=2e-3, cooldown=True),
    )  # fmt: skip


@lru_cache(maxsize=1)
def gloss_sequences(folder: Path) -> Mapping[Split, Tensor]:
    """Return sequences of 65 characters, positions in ``CHARACTERS``, int64 ``(n, 65)``, of which each starts with the
    last character of the one before.

    The splits share no synset.

    Raises:
        WeightspaceError: WordNet's files are missing or broken.
    """
    glosses = read_wordnet(folder).glosses
    order = torch.randperm(len(glosses), generator=torch.Generator().manual_seed(0))
    shuffled = [glosses[at] for at in order.tolist()]
    return {
        "train": sequences_of(shuffled[2 * _HELD_OUT :]),
        "validation": sequences_of(shuffled[_HELD_OUT : 2 * _HELD_OUT]),
        "test": sequences_of(shuffled[:_HELD_OUT]),
    }


def sequences_of(texts: Sequence[str]) -> Tensor:
    """Return texts one after the other, cut into sequences of which each starts with the last character of the one
    before; an incomplete last one is dropped.
    """
    table = torch.full((256,), CHARACTERS.index("\N{REPLACEMENT CHARACTER}"))
    for place, character in enumerate(CHARACTERS):
        if character.isascii():
            table[ord(character)] = place
    joined = "".join(f"{text.lower()}\n" for text in texts).encode("ascii", "replace")  # a question mark is rare, too
    tokens = table[torch.frombuffer(bytearray(joined), dtype=torch.uint8).int()]
    return tokens.unfold(0, _LENGTH + 1, _LENGTH)
