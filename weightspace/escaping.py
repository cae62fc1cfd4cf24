"""Escaping of text from files: control characters escaped, messages on one line and of bounded length.

Names, metadata and paths may contain anything: terminal escape sequences, characters that reverse the text direction,
unpaired surrogates that no stream can encode, Markdown and HTML.
"""

from __future__ import annotations

import re

#: Maximum length of a message in characters; the middle of longer ones is elided.
LONGEST_MESSAGE = 480

_TAIL = 160
_CUT = " … "
_BACKTICKS = re.compile("`+")
_MARKDOWN = re.compile(r"([\\`*\[\]<>&|~#])")


def escaped(text: str) -> str:
    """Return text with every unprintable character escaped as in Python: ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def escaped_lines(text: str) -> str:
    """Apply ``escaped`` to each line."""
    return "\n".join(map(escaped, text.split("\n")))


def one_line(text: str) -> str:
    """Return text as a message: escaped, with lines joined by spaces and the middle elided if it is long."""
    text = _shortened(text, 2 * LONGEST_MESSAGE)  # first, so that a huge text costs nothing
    lines = text.splitlines()
    if len(lines) > 1:
        text = " ".join(line.strip() for line in lines).strip()
    return _shortened(escaped(text), LONGEST_MESSAGE)


def markdown_text(text: str) -> str:
    """Escape text so that Markdown shows it verbatim."""
    return _MARKDOWN.sub(r"\\\1", escaped(text))


def markdown_code(text: str) -> str:
    """Return a Markdown code span of the text, safe in tables."""
    text = escaped(text)
    ticks = "`" * (1 + _longest_run(text))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}".replace("|", "\\|")


def markdown_block(text: str, language: str) -> str:
    """Return a fenced Markdown block of the text, which can't close the fence."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{escaped_lines(text)}\n{fence}"


def _shortened(text: str, longest: int) -> str:
    """Return text with the middle elided if it is too long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - _TAIL - len(_CUT)]}{_CUT}{text[-_TAIL:]}"


def _escape(character: str) -> str:
    return repr(character)[1:-1]


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max(map(len, _BACKTICKS.findall(text)), default=0)
