"""Endings of file names: which of ours was probably meant by one that is none of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

#: Endings of other files that people have around models -> which of ours is nearest in kind.
_FOREIGN = {
    ".safetensors": (
        *(".st", ".sft", ".safe", ".gguf", ".ggml", ".onnx", ".h5", ".hdf5", ".keras", ".npz", ".npy", ".tflite"),
        *(".msgpack", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".xml", ".txt", ".md", ".csv", ".tsv", ".log"),
        *(".py", ".ipynb", ".html", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".index", ".mlmodel", ".parquet"),
    ),
    ".pt": (
        *(".ckpt", ".pkl", ".pickle", ".th", ".t7", ".ptl", ".joblib", ".mar", ".model", ".weights"),
        *(".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst"),
    ),
}

#: A long ending is a misspelling of ours where it is as like as this; of a short one every slip is tried instead.
_ALIKE, _LONG = 0.6, 5


def meant_ending(name: str, ours: Sequence[str]) -> str | None:
    """Return the name that was probably meant, where a name is not quite that of a file of ours.

    Args:
        name: the last part of a path, which has none of our endings.
        ours: endings, lower case, the best first.

    Returns:
        The name with an ending of ours; None where it looks like that of a folder (``Llama-3.1-8B``, ``model-v2.0``).
    """
    lower = name.lower()
    for ending in ours:
        if followed := re.search(rf"{re.escape(ending)}(?=[.~ (]|$)", lower):  # a.pt~, a.pt.tmp, only .pt
            return f"{name[: followed.start()] or 'model'}{ending}"
    stem, dot, word = lower.rpartition(".")
    meant = _meant(f".{word}", ours) if dot and word[:1].isalpha() else None
    return None if meant is None else f"{name[: len(stem)] or 'model'}{meant}"


def _meant(ending: str, ours: Sequence[str]) -> str | None:
    """Return the ending of ours that was meant by another one."""
    for meant, foreign in _FOREIGN.items():
        if ending in foreign:
            return meant
    for known in ours:
        long = len(known) > _LONG
        if _alike(ending, known) if long else _is_slip(ending, known):
            return known
    return None


def _alike(ending: str, known: str) -> bool:
    return SequenceMatcher(None, ending, known).ratio() >= _ALIKE


def _is_slip(ending: str, known: str) -> bool:
    """Return whether a short ending has its letters in another order, one of them twice, or one more at the end."""
    if sorted(ending) == sorted(known) and ending != known:
        return True
    doubled = {known[: at + 1] + known[at:] for at in range(1, len(known))}
    return ending in doubled or (len(ending) == len(known) + 1 and ending.startswith(known))
