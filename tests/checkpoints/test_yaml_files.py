"""YAML gives plain data of bounded size, or one line that says why not."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.checkpoints import yaml_file
from weightspace.checkpoints.yaml_file import parse_yaml, read_yaml
from weightspace.errors import WeightspaceError

TEN = ", ".join(["{0}"] * 10)
PLAIN = {
    "dates are text": ("a: 2024-01-01", {"a": "2024-01-01"}),
    "dates are text as keys too": ("2024-01-01: a", {"2024-01-01": "a"}),
    "numbers and words": ("[1, 0.5, 1e-5, true, no, ~, a]", [1, 0.5, "1e-5", True, False, None, "a"]),
    "an alias": ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
    "a merge key": ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
    "tags of the core": ("[!!str 1, !!float 1, !!int 0x10]", ["1", 1.0, 16]),
    "a byte order mark": ("\ufeffa: 1", {"a": 1}),
    "other scripts": ("模型: é 🎉", {"模型": "é 🎉"}),
}
HOSTILE = {
    "aliases that multiply": "a0: &a0 [x, x]\n"
    + "\n".join(f"a{n}: &a{n} [{TEN.format(f'*a{n - 1}')}]" for n in range(1, 20)),
    "merge keys that multiply": "a0: &a0 {x: 1}\n"
    + "\n".join(f"a{n}: &a{n} {{<<: [{TEN.format(f'*a{n - 1}')}]}}" for n in range(1, 20)),
    "a list inside itself": "a: &a [*a]",
    "an alias of nothing": "a: *b",
    "many items": "[" + "a," * 400_000 + "]",
    "lists nested deep": "[" * 2000 + "]" * 2000,
    "more of them": "[" * 1_000_000,
    "lists nested by their places": "- " * 100_000 + "a",
    "mappings nested deep": "{a: " * 2000,
    "mappings nested by their places": "\n".join(" " * depth + "a:" for depth in range(1000)),
    "a key twice": "a: 1\na: 2",
    "a number as key twice": "1: a\n1: b",
    "a list as key": "[a]: 1",
    "a mapping as key": "? {a: 1}\n: 2",
    "400 digits": "a: " + "9" * 400,
    "5,000 digits": "a: " + "9" * 5000,
    "5,000 digits of a fraction": "a: 0." + "9" * 5000,
    "a sexagesimal number": "a: " + ":".join(["59"] * 2000),
    "code": "!!python/object/apply:os.system [true]",
    "an object": "!!python/object:collections.OrderedDict {}",
    "bytes": "!!binary aGk=",
    "a set": "!!set {a}",
    "an ordered mapping": "!!omap [a: 1]",
    "a date by its tag": "!!timestamp 2024-01-01",
    "a tag of one's own": "!evil a",
    "no number": "!!int abc",
    "half of a surrogate pair": 'a: "\\ud800"',
    "an escape sequence": "a: \x1b[2J",
    "a null byte": "a: \0",
    "an escaped null byte": 'a: "\\0"',
    "large": "#" * 5_000_000,
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_data_is_read(case: str) -> None:
    text, expected = PLAIN[case]
    assert parse_yaml(text, "x.yml") == [expected]


@pytest.mark.parametrize(
    ("parser", "case"),
    [
        *(("CSafeLoader", case) for case in HOSTILE),
        *(
            ("SafeLoader", case) for case, text in HOSTILE.items() if len(text) < 200_000
        ),  # built without the parser in C
    ],
)
def test_hostile_documents_are_refused_at_once(case: str, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_file, "_LOADER", yaml_file.loader_on(getattr(yaml, parser)))
    start = time.process_time()
    with pytest.raises(WeightspaceError, match=r"^x\.yml is not valid YAML: ") as caught:
        parse_yaml(HOSTILE[case], "x.yml")
    assert time.process_time() - start < 10
    assert "\n" not in str(caught.value)


TEXT = st.text(st.characters(categories=("L", "N", "P", "S")))
SCALARS = st.none() | st.booleans() | st.integers() | TEXT


@settings(max_examples=50, deadline=None)
@given(st.recursive(SCALARS, lambda leaf: st.lists(leaf) | st.dictionaries(TEXT, leaf)))
def test_written_documents_are_read_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True), "x.yml") == [value]


def test_a_file_is_read_as_utf8_and_has_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_bytes("é: 1".encode())
    assert read_yaml(path) == [{"é": 1}]
    path.write_bytes("é: 1".encode("latin-1"))
    with pytest.raises(WeightspaceError, match=r"x\.yml is not valid YAML: byte 0 is not UTF-8"):
        read_yaml(path)
    (tmp_path / "x.yml.d").mkdir()
    with pytest.raises(WeightspaceError, match=r"x\.yml\.d is not a regular file"):
        read_yaml(tmp_path / "x.yml.d")
