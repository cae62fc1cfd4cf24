"""Patterns of an adapter match what PEFT matches, and none of them takes long."""

import itertools
import json
import pickle
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import CheckpointError
from weightspace.lora.config import read_configuration
from weightspace.lora.module_patterns import PatternError, Patterns

MODULES = [
    *("q_proj", "layers.0.q_proj", "model.layers.10.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "xq_proj"),
    *("model.decoder.layers.0.k_proj", "decoder.layers.0.k_proj", "down_blocks.0.attentions.1.to_q", "a.b", "b", ""),
    *("model.layers.0.mlp.down_proj", "é.模型", "qzproj", "layers.q_proj.x"),
]
KEYS = [
    *("q_proj", "layers.0.q_proj", "self_attn.q_proj", r"^model\.decoder\.layers\.0\.k_proj", ".*decoder.*k_proj"),
    *(r"layers\.[01]\.q_proj", r"layers\.\d+\.self_attn\.q_proj", r"layers\.(0|10)\..*", "(q|k)_proj", "a|b", "", "b$"),
    *(
        r"model\.layers\.(?:[0-9]|1[0-5])\.self_attn.*",
        r".*\.(down|up)_proj",
        r"\w+",
        r"[^.]+",
        "q.proj",
        ".*?proj",
        "x*",
    ),
    *(
        "(a.)?b",
        "(a|ab)(c|bcd)?",
        "模型",
        r"\S+\.模型",
        "l{2}|b{1,2}",
        "(l{0,2}ayers.){1,3}.*",
        "a{0}b",
        "^b^",
        "()*b",
        "(|a)*b",
    ),
    *("q_proj)|(b", "(((b)))", r"\x62", "[a-c]", "[^a-c]", r"[\d.]+", r"[\D]+", "A?b", "b\\Z", "\\Ab"),
]


def by_peft(keys: list[str], module: str) -> str:
    """Return what PEFT's get_pattern_key does."""
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", module)), "none")


@pytest.mark.parametrize("key", KEYS)
def test_a_pattern_matches_what_peft_matches(key: str) -> None:
    patterns = Patterns({key: key})
    for module in MODULES:
        assert patterns.find(module, "none") == by_peft([key], module), module


def test_the_first_pattern_that_matches_counts() -> None:
    patterns = Patterns({key: key for key in KEYS})
    for module in MODULES:
        assert patterns.find(module, "none") == by_peft(KEYS, module)
    assert list(patterns) == KEYS
    assert patterns["q_proj"] == "q_proj"


ATOMS = st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\w", "^", "$", "(?:a|b.)", "(ab)?"])
KEY = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}", "{2}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(key=KEY, module=st.text("ab.", max_size=6))
def test_any_pattern_matches_what_python_matches(key: str, module: str) -> None:
    assert Patterns({key: 1}).find(module, 0) == bool(re.match(rf"(.*\.)?({key})$", module))


@pytest.mark.parametrize(
    "key", ["(a+)+", "(a|a)*b", "(.*)*x", "(a*)*(a*)*(a*)*b", ".*.*.*.*.*.*.*.*=", "(a?){200}a{200}", "(x+x+)+y"]
)
def test_no_pattern_takes_long(key: str) -> None:
    start = time.process_time()
    patterns = Patterns({key: 1})
    for length in range(100):
        patterns.find("a" * length + "xxx" * length + "c", 0)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("key", ["q_proj", r"layers\.\d+\.q_proj", "(a|b)*c", r"[^\W\d]+.x"])
def test_patterns_can_be_pickled(key: str) -> None:
    patterns = Patterns({key: 1})
    again = pickle.loads(pickle.dumps(patterns))
    for module in ("layers.3.q_proj", "abac", "abacx.x", "q_proj"):
        assert again.find(module, 0) == patterns.find(module, 0)


def test_patterns_that_are_slow_in_total_are_refused() -> None:
    patterns = Patterns({f".*[a-{letter}].*{n}": n for letter in "bcd" for n in range(100)})
    modules = (f"layers.{number}." * 20 for number in range(100_000))
    with pytest.raises(PatternError, match="need more than"):
        list(map(patterns.find, modules, itertools.repeat(0)))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("q(", "isn't a regular expression"),
        ("(a)\\1", "groupref.* not supported"),
        ("(?=a)b", "assert.* not supported"),
        ("(?i:a)", "not supported"),
        (r"a\b", "not supported"),
        ("(a{1,1000}){1,1000}", "repeats too much"),
        ("(" * 5000, "5,000 characters"),
        ("(" * 1000 + ")" * 1000, "isn't a regular expression|repeats too much"),
        ("a{99999999999999999999}", "isn't a regular expression"),
        ("[" + "a" * 1998, "isn't a regular expression"),
    ],
)
def test_patterns_without_a_time_bound_are_refused(key: str, message: str, tmp_path: Path) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, field: {key: 2}}))
        with pytest.raises(CheckpointError, match=f"{field}.*({message})") as caught:
            read_configuration(tmp_path)
        assert len(str(caught.value)) < 500
