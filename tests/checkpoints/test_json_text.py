"""Values found in JSON text."""

import json
from typing import Any

import pytest

from weightspace.checkpoints.json_text import find_value

CONTENT: dict[str, Any] = {
    "first": [1, {"vocab": 2}, '"vocab"'],
    "model": {"ty\\pe": 'a"b}', "vocab": {"a\n": 0, "ü": 1}, "merges": [["a", "b"]]},
    "empty": {},
    "vocab": None,
}


@pytest.mark.parametrize(
    "form", [{}, {"indent": 2}, {"separators": (",", ":")}, {"indent": "\t", "ensure_ascii": False}]
)
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model", "vocab"), CONTENT["model"]["vocab"]),
        (("model",), CONTENT["model"]),
        (("vocab",), None),
        (("first",), CONTENT["first"]),
        ((), CONTENT),
    ],
)
def test_a_value_and_its_place_are_found(form: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    text = f"\n {json.dumps(CONTENT, **form)}\n"
    found = find_value(text, *keys)
    assert found is not None
    start, end, parsed = found
    assert parsed == value == json.loads(text[start:end])


@pytest.mark.parametrize("keys", [("none",), ("model", "none"), ("vocab", "a"), ("first", "vocab"), ("empty", "a")])
def test_a_missing_value_is_none(keys: tuple[str, ...]) -> None:
    assert find_value(json.dumps(CONTENT), *keys) is None


@pytest.mark.parametrize("text", ['{"a": 1, b', '{"a": tru', '{"a"', '{"c": ['])
def test_damaged_text_is_an_error(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        find_value(text, "c")
