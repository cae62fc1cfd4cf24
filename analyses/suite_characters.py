"""Suite of character language models: one pretrained on definitions of nouns, fine-tuned on four other kinds of text.

The texts are on every machine that has WordNet and Python: definitions of verbs and example sentences (WordNet), and
docstrings and code without them (Python's standard library, so that they depend on its version).
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from recipe import trained_path
from suites import Sizes, Suite, fine_tuned
from torch import Tensor, nn
from wordnet_texts import definitions, examples

import weightspace as ws
from weightspace.tasks import Split, TrainConfig
from weightspace.zoo.language_task import LanguageTask
from weightspace.zoo.llama import Llama

FULL = Sizes(pretraining=490, training=25, epochs=4, validation=32, test=96, width=96)
SMALL = Sizes(pretraining=4, training=2, epochs=1, validation=4, test=4, width=16)

#: The tokens: a rare character, the end of a line, and the printable characters of ASCII.
CHARACTERS = "\N{REPLACEMENT CHARACTER}\n" + "".join(map(chr, range(32, 127)))
_LENGTH = 64
#: Sequences at most that a network is trained on.
_MOST = 20_000
#: Modules of the standard library that the docstrings and the code are from.
MODULES = (
    *(
        "abc",
        "argparse",
        "ast",
        "base64",
        "bisect",
        "calendar",
        "cmd",
        "codecs",
        "collections/__init__",
        "configparser",
    ),
    *("contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest", "enum"),
    *("filecmp", "fractions", "ftplib", "functools", "getopt", "gettext", "glob", "gzip", "heapq", "hmac"),
    *("inspect", "ipaddress", "locale", "mailbox", "mimetypes", "netrc", "numbers", "operator", "optparse", "os"),
    *("pathlib", "pdb", "pickle", "pkgutil", "platform", "plistlib", "poplib", "pprint", "profile", "pstats"),
    *("queue", "random", "sched", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "statistics"),
    *("string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "types"),
    *("typing", "uuid", "warnings", "wave", "weakref", "webbrowser", "zipfile", "zipapp"),
)


def suite(seed: int, sizes: Sizes, cache: Path) -> Suite:
    """Return the suite of a seed, which determines the held-out texts and the fine-tuning."""
    nouns = _task(
        "characters-nouns", _nouns, seed=0, sizes=sizes, steps=sizes.pretraining, rate=2e-3, build=_new(sizes)
    )
    start = trained_path(nouns, 0, cache=cache)
    started = partial(_started, _new(sizes), start)
    parts = {
        kind: _task(f"characters-{kind}", load, seed=seed, sizes=sizes, steps=0, rate=1e-3, build=started)
        for kind, load in KINDS.items()
    }
    return fine_tuned("characters", parts, "loss", seed, cache)


def _new(sizes: Sizes) -> Callable[[], nn.Module]:
    return partial(
        Llama, vocabulary=len(CHARACTERS), length=_LENGTH, width=sizes.width, depth=3, heads=4, groups=2,
        hidden=sizes.width * 8 // 3,
    )  # fmt: skip


def _started(new: Callable[[], nn.Module], start: Path) -> nn.Module:
    """Return a new network with pretrained weights."""
    network = new()
    network.load_state_dict(ws.load_checkpoint(start))
    return network


def _task(
    name: str,
    load: Callable[[], Sequence[str]],
    *,
    seed: int,
    sizes: Sizes,
    steps: int,
    rate: float,
    build: Callable[[], nn.Module],
) -> LanguageTask:
    """Return a task of the texts that ``load`` returns; ``steps`` of pretraining, or none for fine-tuning."""
    epochs = 7 if steps >= 7 else 1
    return LanguageTask(
        name=name,
        build=build,
        load=partial(splits_of, load, seed, sizes.validation, sizes.test),
        batch_size=48 if steps else 32,
        epoch=steps // epochs if steps else sizes.training,
        recipe=TrainConfig(epochs=epochs if steps else sizes.epochs, learning_rate=rate, cooldown=True),
    )


@lru_cache(maxsize=16)
def splits_of(load: Callable[[], Sequence[str]], seed: int, validation: int, test: int) -> Mapping[Split, Tensor]:
    """Return sequences of 65 characters, positions in ``CHARACTERS``, from different texts in every split.

    A tenth of the texts each, drawn by the seed, is for validation and test; the first sequences are taken.
    """
    texts = load()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, len(texts) // 10)
    parts = {"validation": order[:held_out], "test": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    most = {"validation": validation, "test": test, "train": _MOST}
    return {
        split: _sequences([texts[at] for at in chosen])[: most[split]]  # type: ignore[misc]
        for split, chosen in parts.items()
    }


def _sequences(texts: Sequence[str]) -> Tensor:
    """Return texts one after the other, cut into sequences of which each starts with the last character before it."""
    table = torch.zeros(256, dtype=torch.int64)
    for place, character in enumerate(CHARACTERS[1:], start=1):
        table[ord(character)] = place
    joined = "".join(f"{text}\n" for text in texts).encode("latin-1", "replace")
    tokens = table[torch.frombuffer(bytearray(joined), dtype=torch.uint8).int()]
    return tokens.unfold(0, _LENGTH + 1, _LENGTH).contiguous()


def _nouns() -> list[str]:
    return definitions("noun")


def _verbs() -> list[str]:
    return definitions("verb")


def docstrings() -> list[str]:
    """Return the docstrings of ``MODULES``, one text per module."""
    return ["\n".join(_docstrings(tree)) for tree in _trees()]


def code() -> list[str]:
    """Return the code of ``MODULES`` without docstrings and comments, one text per module."""
    return [ast.unparse(_without_docstrings(tree)) for tree in _trees()]


def _trees() -> list[ast.Module]:
    """Return the syntax trees of those modules that this version of Python has."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = [folder / f"{name}.py" for name in MODULES]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in found if path.is_file()]


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(tree: ast.Module) -> list[str]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


#: Kind of text -> function that returns the texts.
KINDS: Mapping[str, Callable[[], list[str]]] = {
    "verbs": _verbs,
    "examples": examples,
    "docstrings": docstrings,
    "code": code,
}
