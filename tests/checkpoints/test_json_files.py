"""JSON is read within bounds, or one line says why not."""

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightspace.checkpoints.json_file import parse_json, read_json, read_json_object
from weightspace.errors import CheckpointError

FINE = {
    "a configuration": (
        b'{"time_step_limit": [0.0, Infinity], "a": null}',
        {"time_step_limit": [0.0, math.inf], "a": None},
    ),
    "a number that stands for no limit": (b"1000000000000000019884624838656", 10**30 + 19884624838656),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    "a pair of surrogates": (b'"\\ud83c\\udf89"', "🎉"),
    "the same key with the same value": (b'{"a": [1], "a": [1]}', {"a": [1]}),
    "a hundred lists": (b"[" * 100 + b"]" * 100, None),
    "text": ('{"模型": 1}', {"模型": 1}),
}
HOSTILE = {
    "101 lists": b"[" * 101 + b"]" * 101,
    "2,000 lists": b"[" * 2000 + b"]" * 2000,
    "2,000 objects": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "a million lists that nobody closes": b"[" * 1_000_000,
    "lists that fill the memory": b"[" + b"[]," * 10_000_000 + b"[]]",
    "objects that do": b"[" + b"{}," * 10_000_000 + b"{}]",
    "two values of a key": b'{"a": 1, "a": 2}',
    "many values of a key": b"{" + b",".join(b'"a":%d' % n for n in range(200_000)) + b"}",
    "two values far inside": b'[{"b": [{"a": 1, "a": 2}]}]',
    "400 digits": b"[" + b"9" * 400 + b"]",
    "5,000 digits": b"[-" + b"9" * 5000 + b"]",
    "half of a pair of surrogates": b'{"\\ud83c": 1}',
    "the other half": b'"\\uDF89"',
    "half of one in bytes": b'"\xed\xa0\x80"',
    "another encoding": '{"a": 1}'.encode("utf-16"),
    "no text": b"\xff\xfe\xfd",
    "nothing": b"",
    "two texts": b"{} {}",
    "a text that ends too early": b'{"a',
    "a control character": b'"\x1b"',
    "a number that is none": b"1e",
}


@pytest.mark.parametrize("case", FINE)
def test_the_contents_of_real_files_are_read(case: str) -> None:
    content, expected = FINE[case]
    assert parse_json(content, "x.json") == expected or expected is None


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_documents_are_refused_at_once(case: str) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"^x\.json is not valid JSON") as caught:
        parse_json(HOSTILE[case], "x.json")
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda leaf: st.lists(leaf) | st.dictionaries(st.text(), leaf))
)
def test_written_documents_are_read_back(value: object) -> None:
    for ascii_only in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_only), "x.json") == value


def test_a_file_that_is_no_object_no_file_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    assert read_json(tmp_path / "list.json") == [1]
    (tmp_path / "folder.json").mkdir()
    for name, message in {
        "list.json": "list.json is a JSON list, expected an object",
        "folder.json": "folder.json is not a regular file",
        "none.json": "none.json cannot be read: No such file",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            read_json_object(tmp_path / name)
