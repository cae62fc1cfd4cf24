r"""Markdown extension: ``$…$`` and ``$$…$$`` become MathML, which browsers render without scripts or downloads."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

#: Before the escapes of Markdown (180), after code (190).
_PRIORITY = 185


class Formula(InlineProcessor):
    """LaTeX between dollars."""

    def __init__(self, pattern: str, markdown: Markdown, display: str) -> None:
        super().__init__(pattern, markdown)
        self.display = display

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str | Element, int, int]:  # noqa: N802
        """Return the formula as MathML, protected from further Markdown processing.

        Raises:
            ValueError: the formula has a command unknown to the converter, which would be shown verbatim.
        """
        del data
        latex = re.sub(r"\\arg\s*\\(min|max)(?![A-Za-z])", r"\\operatorname{arg\1}", " ".join(m[1].split()))
        mathml = convert(latex, display=self.display)
        if "\\" in mathml:
            raise ValueError(f"Unknown command in the formula {m[1]!r}.")
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)


class Formulas(Extension):
    """Displayed and inline formulas."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register both patterns."""
        md.inlinePatterns.register(Formula(r"(?s)\$\$(.+?)\$\$", md, "block"), "displayed formula", _PRIORITY + 1)
        md.inlinePatterns.register(Formula(r"(?<![\\$\w])\$([^$\n]+?)\$(?!\w)", md, "inline"), "formula", _PRIORITY)


def makeExtension(**settings: object) -> Formulas:  # noqa: N802
    """Return the extension; called by Markdown."""
    return Formulas(**settings)
