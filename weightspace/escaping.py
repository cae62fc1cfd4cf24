"""Text from files made safe to show: control characters escaped, messages on one line and of bounded length.

Names, metadata and paths may hold anything: escape sequences that drive a terminal, characters that reverse the order
of the text, halves of surrogate pairs that no stream can encode, Markdown and HTML.
"""

from __future__ import annotations

import re

#: Characters of a message, at most; of a longer one the middle is left out.
LONGEST_MESSAGE = 480

_TAIL = 160
_CUT = " … "
_BACKTICKS = re.compile("`+")
_MARKDOWN = re.compile(r"([\\`*\[\]<>&|~#])")


def escaped(text: str) -> str:
    """Return text in which every character that cannot be printed is written as Python writes it: ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def escaped_lines(text: str) -> str:
    """Return the same as ``escaped``, line by line."""
    return "\n".join(map(escaped, text.split("\n")))


def one_line(text: str) -> str:
    """Return text as a message: escaped, its lines joined by spaces, the middle left out where it is long."""
    text = _shortened(text, 2 * LONGEST_MESSAGE)  # before the rest, so that a text of megabytes costs nothing
    lines = text.splitlines()
    if len(lines) > 1:
        text = " ".join(line.strip() for line in lines).strip()
    return _shortened(escaped(text), LONGEST_MESSAGE)


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", escaped(text))


def markdown_code(text: str) -> str:
    """Return a code span that shows the text, in a table too."""
    text = escaped(text)
    ticks = "`" * (1 + _longest_run(text))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}".replace("|", "\\|")


def markdown_block(text: str, language: str) -> str:
    """Return a fenced block that shows the text, which cannot end it."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{escaped_lines(text)}\n{fence}"


def _shortened(text: str, longest: int) -> str:
    """Return text without its middle where it is too long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - _TAIL - len(_CUT)]}{_CUT}{text[-_TAIL:]}"


def _escape(character: str) -> str:
    return repr(character)[1:-1]


def _longest_run(text: str) -> int:
    """Return how many backticks stand in a row at most."""
    return max(map(len, _BACKTICKS.findall(text)), default=0)
