"""Docstrings as Markdown: conversion of the reStructuredText roles, directives and section titles used in them."""

from __future__ import annotations

import re
from typing import NamedTuple

_DISPLAYED = re.compile(r"^\.\. math:: *(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_FORMULA = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:meth|func|class|mod|attr|data):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_SHARED = re.compile(r"^    (\w+(?:, \w+)+)(: .*(?:\n {5,}\S.*)*)", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """Return a docstring with formulas between dollar signs, references as code and one entry per parameter."""
    text = _DISPLAYED.sub(lambda found: f"$$ {' '.join(found[1].split())} $$", docstring)
    text = _FORMULA.sub(lambda found: f"${' '.join(found[1].split())}$", text)
    text = _SHARED.sub(lambda found: "\n".join(f"    {name}{found[2]}" for name in found[1].split(", ")), text)
    return _EXAMPLE.sub("Examples:", _ROLE.sub(r"`\1`", text))


class Sections(NamedTuple):
    """The parts of a Google-style docstring that are used on pages.

    Attributes:
        text: the paragraphs after the summary.
        arguments: name -> meaning.
    """

    text: str
    arguments: dict[str, str]


def sections(docstring: str) -> Sections:
    """Parse the docstring of a function."""
    head, *_ = re.split(r"^\w+:$", docstring, maxsplit=1, flags=re.MULTILINE)
    _, _, text = head.strip().partition("\n\n")
    listed = re.search(r"^Args:\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.split(r"^    (?=[\w, ]+: )", listed[1] if listed else "", flags=re.MULTILINE)
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries if entry.strip())
    arguments = {name: as_markdown(meaning) for names, _, meaning in pairs for name in names.split(", ")}
    return Sections(as_markdown(text), arguments)
