"""Whatever a file calls things, a message is one short line, and nothing drives the terminal."""

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import CheckpointError, SpecError, WeightspaceError
from weightspace.escaping import escaped, escaped_lines, markdown_block, markdown_code, markdown_text, one_line

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


@given(ANY_TEXT)
def test_escaped_text_can_be_printed_anywhere(text: str) -> None:
    shown = escaped(text)
    assert shown.isprintable()
    shown.encode()
    if text.isprintable():
        assert shown == text


@given(st.lists(ANY_TEXT, min_size=1, max_size=3))
def test_an_error_is_one_line_below_500_characters(texts: list[str]) -> None:
    for kind in (WeightspaceError, CheckpointError, SpecError):
        message = str(kind("\n".join(texts) * 50))
        assert message.isprintable()
        assert len(message) < 500


def test_the_beginning_and_the_end_of_a_long_message_are_kept() -> None:
    message = str(CheckpointError(f"a.safetensors: tensor {'x' * 10**7!r} is damaged. Copy it again."))
    assert message.startswith("a.safetensors: tensor 'xxx")
    assert message.endswith("xxx' is damaged. Copy it again.")
    assert " … " in message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]52;c;aGk=\x07", "\\x1b[2J\\x1b]52;c;aGk=\\x07"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\ud800", "\\ud800"),
        ("a\x00b\x7fc\x9b", "a\\x00b\\x7fc\\x9b"),
        ("naïve 模型 🎉", "naïve 模型 🎉"),
    ],
)
def test_control_characters_become_visible(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert str(WeightspaceError(text)) == shown


def test_the_lines_of_a_message_become_one() -> None:
    assert one_line("first\n   second\r\nthird\u2028fourth\n") == "first second third fourth"
    assert escaped_lines("a\n\tb\x1b\n") == "a\n\\tb\\x1b\n"


def test_a_pickled_error_keeps_its_type_and_message() -> None:
    error = CheckpointError("x" * 1000 + "\x1b")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (CheckpointError, str(error))


@given(ANY_TEXT)
def test_markdown_cannot_be_left(text: str) -> None:
    block = markdown_block(text, "yaml").split("\n")
    assert block[0].endswith("`yaml")
    assert not any(re.match(rf" *{block[-1]}`*\s*$", line) for line in block[1:-1])
    span = markdown_code(text)
    ticks = re.match("`+", span)
    assert ticks is not None
    assert span.isprintable()
    assert not re.search(r"(?<!\\)\|", span)
    inner = span[len(ticks[0]) : -len(ticks[0])]
    assert ticks[0] not in re.findall("`+", inner)


@pytest.mark.parametrize("text", ["<script>", "[a](javascript:x)", "**b**", "a | b", "# c", "`d`", "![](http://x)"])
def test_markdown_shows_text_as_it_is(text: str) -> None:
    shown = markdown_text(text)
    assert not re.search(r"(?<!\\)[`*\[\]<>|#]", shown)
    assert json.loads(json.dumps(shown)).replace("\\", "") == text
