"""Evaluations are repeated as soon as a file that they depend on has changed."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from kitchen import PLAIN, fine_tunes

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.soups import file_dependencies as reading
from weightspace.soups.fingerprints import fingerprint_of_task
from weightspace.zoo import load_task

TASK = """
import importlib, os
from functools import lru_cache
from pathlib import Path
import numpy as np
import torch
import weightspace as ws
from kitchen import examples, plain_network
from weightspace.tasks import ClassificationTask

HERE = Path(__file__).parent
{imports}

class Mine(ClassificationTask):
    {body}

    def score(self, module, split="test"):
        with open(HERE / "calls", "a") as calls:
            calls.write("x")
        return {{"accuracy": float({value}), "loss": 1.0}}

task = Mine("mine", plain_network, examples)
"""
VALUE = "VALUE = 0.25\n"
TEXT = "def value(): return {}"

#: What the score comes from -> imports, value, the file that holds .25 (to become .75), other files, body of the class.
SOURCES: dict[str, tuple[str, str, str, dict[str, str], str]] = {
    "a neighbour": ("import near", "near.VALUE", "near.py", {}, ""),
    "a neighbour's function": ("from near import f", "f()", "near.py", {"near.py": "def f(): return 0.25\n"}, ""),
    "a neighbour of a neighbour": ("import near", "near.far.VALUE", "far.py", {"near.py": "import far\n"}, ""),
    "a star": ("from near import *", "VALUE", "near.py", {}, ""),
    "a package": ("import pkg", "pkg.VALUE", "pkg/__init__.py", {}, ""),
    "deep in a package": (
        "from pkg.sub.deep import VALUE",
        "VALUE",
        "pkg/sub/deep.py",
        {"pkg/__init__.py": "", "pkg/sub/__init__.py": ""},
        "",
    ),
    "relative imports": (
        "from pkg.sub import VALUE",
        "VALUE",
        "pkg/inner.py",
        {"pkg/__init__.py": "", "pkg/sub/__init__.py": "from ..inner import VALUE\n"},
        "",
    ),
    "a package without an init": ("from space.part import VALUE", "VALUE", "space/part.py", {}, ""),
    "an import in a function": ("def f():\n    import near\n    return near.VALUE", "f()", "near.py", {}, ""),
    "an import in a branch": (
        "try:\n    import near\nexcept ImportError:\n    near = None",
        "near.VALUE",
        "near.py",
        {},
        "",
    ),
    "a name in a text": ("", "importlib.import_module('near').VALUE", "near.py", {}, ""),
    "a name that is made": ("NAME = 'ne'", "importlib.import_module(NAME + 'ar').VALUE", "near.py", {}, ""),
    "a submodule made by name": ("NAME = 'pkg.'", "__import__(NAME + 'part').part.VALUE", "pkg/part.py", {}, ""),
    "an editable install": ("import elsewhere", "elsewhere.VALUE", "../lib/elsewhere.py", {}, ""),
    "code that is read": ("", "(exec((HERE / 'part.txt').read_text(), globals()) or VALUE)", "part.txt", {}, ""),
    "a file read by open": ("", "open(HERE / 'value.txt').read()", "value.txt", {}, ""),
    "a file read by a thread": (
        "from concurrent.futures import ThreadPoolExecutor",
        "next(ThreadPoolExecutor(1).map(Path.read_text, [HERE / 'value.txt']))",
        "value.txt",
        {},
        "",
    ),
    "a file read by the system": ("", "os.read(os.open(HERE / 'value.txt', os.O_RDONLY), 9)", "value.txt", {}, ""),
    "a file read once": ("@lru_cache\ndef f(): return (HERE / 'value.txt').read_text()", "f()", "value.txt", {}, ""),
    "a file read at the start": ("READ = (HERE / 'value.txt').read_text()", "READ", "value.txt", {}, ""),
    "a file read by a neighbour": (
        "import near",
        "near.READ['value']",
        "value.txt",
        {"near.py": "from pathlib import Path\nREAD = {'value': Path(__file__).with_name('value.txt').read_text()}\n"},
        "",
    ),
    "a file read with the network": (
        "def network(): return (plain_network(), VALUES.append((HERE / 'value.txt').read_text()))[0]\nVALUES = []",
        "(HERE / 'value.txt').read_text()",
        "value.txt",
        {},
        "",
    ),
    "a file that is declared": (
        "",
        "os.popen(f'cat {HERE}/value.txt').read()",
        "value.txt",
        {},
        "files = [HERE / 'value.txt']",
    ),
    "files that a method declares": (
        "",
        "os.popen(f'cat {HERE}/value.txt').read()",
        "value.txt",
        {},
        "def files(self): return str(HERE / 'value.txt')",
    ),
    "a folder that is declared": (
        "",
        "os.popen(f'cat {HERE}/data/*/*.txt').read()",
        "data/deep/value.txt",
        {},
        "files = (HERE / 'data',)",
    ),
}


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules of a test be found, and leave no bytecode, which Python knows by whole seconds only."""
    (tmp_path / "lib").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def forget() -> None:
    """Forget what a new process would not know."""
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("near", "far", "pkg", "space", "elsewhere")
    ]:
        del sys.modules[name]
    importlib.invalidate_caches()
    reading._NOTES.clear()


def score(folder: Path) -> tuple[float, int]:
    """Return the score of one model by the task of a folder, as a new process finds it, and how often it scored."""
    forget()
    sys.path.insert(0, str(folder))
    try:
        task = load_task(f"{folder}/mine.py:task")
        _, states = fine_tunes(PLAIN, 1, steps=1)
        (folder / "calls").write_text("")
        found = ws.greedy_soup(states, task).score
    finally:
        sys.path.remove(str(folder))
    return found, len((folder / "calls").read_text())


def write(folder: Path, source: str) -> Path:
    """Write the task and return the file that holds the score."""
    imports, value, holder, others, body = SOURCES[source]
    folder.mkdir(exist_ok=True)
    content = "0.25" if holder == "value.txt" or holder.startswith("data/") else VALUE
    for name, text in {
        holder: content,
        **others,
        "mine.py": TASK.format(imports=imports, value=value, body=body),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / holder


@pytest.mark.parametrize("source", SOURCES)
def test_a_score_is_found_again_as_long_as_nothing_changes_and_made_again_then(source: str, tmp_path: Path) -> None:
    holder = write(tmp_path / "task", source)
    assert score(tmp_path / "task") == (0.25, 1)
    assert score(tmp_path / "task") == (0.25, 0)
    before = holder.stat()
    holder.write_text(holder.read_text().replace("0.25", "0.75"))
    if holder.suffix == ".txt":  # not even the time tells
        os.utime(holder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert score(tmp_path / "task") == (0.75, 1)
    assert score(tmp_path / "task") == (0.75, 0)


#: What the score comes from -> its value, files, and what changes them so that the score is .75 then.
CHANGES: dict[str, tuple[str, dict[str, str], Callable[[Path], object]]] = {
    "a link to another folder": (
        "(HERE / 'latest' / 'value.txt').read_text()",
        {"v1/value.txt": "0.25", "v2/value.txt": "0.75", "latest": "-> v1"},
        lambda folder: ((folder / "latest").unlink(), (folder / "latest").symlink_to("v2")),
    ),
    "a link to another file": (
        "open(HERE / 'latest.txt').read()",
        {"v1.txt": "0.25", "v2.txt": "0.75", "latest.txt": "-> v1.txt"},
        lambda folder: ((folder / "latest.txt").unlink(), (folder / "latest.txt").symlink_to("v2.txt")),
    ),
    "one file more in a folder": (
        "sum(float(file.read_text()) for file in (HERE / 'data').glob('*.txt'))",
        {"data/a.txt": "0.25"},
        lambda folder: (folder / "data" / "b.txt").write_text("0.5"),
    ),
    "one name more in a folder": (
        "len(os.listdir(HERE / 'data')) / 4",
        {"data/a": ""},
        lambda folder: [(folder / "data" / name).write_text("") for name in "bc"],
    ),
    "one folder more below a folder": (
        "sum(len(names) for _, names, _ in os.walk(HERE / 'data')) / 4",
        {"data/a/x": ""},
        lambda folder: (folder / "data" / "a" / "b" / "c").mkdir(parents=True),
    ),
    "a file that is gone": (
        "open(HERE / 'value.txt').read() if VALUE() else 0.75",
        {"value.txt": "0.25"},
        lambda folder: (folder / "value.txt").unlink(),
    ),
    "a file that comes later": (
        "0.75 if VALUE() else 0.25",
        {},
        lambda folder: (folder / "value.txt").write_text("1"),
    ),
    "an array in a memory map": (
        "np.memmap(HERE / 'value.bin', np.uint8)[0] / 100",
        {"value.bin": chr(25)},
        lambda folder: (folder / "value.bin").write_bytes(bytes([75])),
    ),
}

TRYING = """
def VALUE():
    try:
        return open(HERE / "value.txt").read()
    except OSError:
        return ""
"""


@pytest.mark.parametrize("case", CHANGES)
def test_a_score_is_made_again_when_names_change(case: str, tmp_path: Path) -> None:
    value, files, change = CHANGES[case]
    for name, text in {**files, "mine.py": TASK.format(imports=TRYING, value=value, body="")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            (tmp_path / name).symlink_to(text.removeprefix("-> "))
        else:
            (tmp_path / name).write_text(text)
    assert score(tmp_path) == (0.25, 1)
    assert score(tmp_path) == (0.25, 0)
    change(tmp_path)
    assert score(tmp_path) == (0.75, 1)
    assert score(tmp_path) == (0.75, 0)


def test_a_global_that_comes_from_the_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SOURCES["environment"] = ("SCALE = float(os.environ['SCALE'])", "SCALE", "unused.py", {}, "")
    write(tmp_path / "task", "environment")
    for value, calls in ((0.5, 1), (0.125, 1), (0.5, 0)):
        monkeypatch.setenv("SCALE", str(value))
        assert score(tmp_path / "task") == (value, calls)
    del SOURCES["environment"]


def test_code_that_was_loaded_before_its_file_was_edited_is_known_by_what_it_does(tmp_path: Path) -> None:
    write(tmp_path / "task", "a neighbour's function")
    assert score(tmp_path / "task") == (0.25, 1)
    forget()
    sys.path.insert(0, str(tmp_path / "task"))
    try:
        task = load_task(f"{tmp_path}/task/mine.py:task")
        (tmp_path / "task" / "near.py").write_text("def f(): return 0.75\n")  # and what is loaded stays as it was
        _, states = fine_tunes(PLAIN, 1, steps=1)
        assert ws.greedy_soup(states, task).score == 0.25
    finally:
        sys.path.remove(str(tmp_path / "task"))
    assert score(tmp_path / "task") == (0.75, 1)


def test_unused_neighbouring_files_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "task", "a neighbour")
    assert score(tmp_path / "task") == (0.25, 1)
    for name in ("other.py", "notes.txt", "pkg.py"):
        (tmp_path / "task" / name).write_text("VALUE = 1\n")
    assert score(tmp_path / "task") == (0.25, 0)


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    task = SimpleNamespace(name="mine", files=[tmp_path / "nowhere.csv"])
    with pytest.raises(WeightspaceError, match=r"Task 'mine' declares .*nowhere.csv, which isn't a file"):
        fingerprint_of_task(task)  # type: ignore[arg-type]
    for wrong in ([3], 3, [object()]):
        with pytest.raises(WeightspaceError, match="declares files that aren't paths"):
            fingerprint_of_task(SimpleNamespace(name="mine", files=wrong))  # type: ignore[arg-type]


def test_declared_files_are_known_by_their_content(tmp_path: Path) -> None:
    found = []
    for name, content in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(content)
        found.append(fingerprint_of_task(SimpleNamespace(name="t", files=lambda name=name: [tmp_path / name])))  # type: ignore[arg-type]
    assert found[0] != found[2]
