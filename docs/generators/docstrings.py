"""Docstrings as Markdown: the few roles and directives of reStructuredText in them, and the titles of sections."""

from __future__ import annotations

import re

_DISPLAYED = re.compile(r"^\.\. math:: *(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_FORMULA = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:meth|func|class|mod|attr|data):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """Return a docstring whose formulas stand between dollars and whose references are code."""
    text = _DISPLAYED.sub(lambda found: f"$$ {' '.join(found[1].split())} $$", docstring)
    text = _FORMULA.sub(lambda found: f"${' '.join(found[1].split())}$", text)
    return _EXAMPLE.sub("Examples:", _ROLE.sub(r"`\1`", text))
