"""Fingerprints of tasks that a notebook defines, whose code is in no file."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from weightspace.soups import file_dependencies
from weightspace.soups.fingerprints import fingerprint_of_task

CELLS = """
import math
from kitchen import examples, plain_network
from weightspace.tasks import ClassificationTask

SCALE = 2
TABLE = {"a": [1, 2], "b": (3.5,)}
def shift(x): return x + 1
def twice(f):
    def inner(x): return f(f(x))
    return inner
class Base(ClassificationTask):
    weight = 0.5
    steps = [1, 2]
    def helper(self): return shift(SCALE) * self.weight
    @staticmethod
    def still(): return 1
    @property
    def shown(self): return "shown"
class Mine(Base):
    def score(self, module, split="test"):
        values = [twice(shift)(x) for x in TABLE["a"]]
        return {"accuracy": self.helper() + sum(values) + math.sqrt(4), "loss": (lambda y: y + 1)(0)}
task = Mine("mine", plain_network, examples)
"""
EDITS = {
    "a constant": ("self.helper() + sum", "2 * self.helper() + sum"),
    "a global": ("SCALE = 2", "SCALE = 3"),
    "a value in a table": ("(3.5,)", "(3.25,)"),
    "a function that is called": ("return x + 1", "return x + 2"),
    "a function in a function": ("f(f(x))", "f(f(f(x)))"),
    "a lambda": ("y + 1", "y + 3"),
    "a comprehension": ("for x in TABLE", "for x in 2 * TABLE"),
    "an attribute of a class": ("weight = 0.5", "weight = 0.25"),
    "a list in a class": ("steps = [1, 2]", "steps = [1]"),
    "a method of the base": ("* self.weight", "/ self.weight"),
    "a static method": ("return 1", "return 2"),
    "a property": ('"shown"', '"hidden"'),
    "a default": ('split="test"', 'split="validation"'),
    "a name": ("math.sqrt(4)", "math.cbrt(4)"),
    "a base more": ("class Mine(Base)", "class Other:\n    more = 1\nclass Mine(Base, Other)"),
}


def forget_near() -> None:
    """Forget the module ``near``, which a new process would not know."""
    sys.modules.pop("near", None)
    importlib.invalidate_caches()
    file_dependencies._NOTES.clear()


def run_cells(code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Run code as the cells of a notebook, whose module has no file."""
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    exec(compile(code, "/tmp/ipykernel_1/nowhere.py", "exec"), vars(notebook))
    return notebook


@pytest.mark.parametrize("edit", EDITS)
def test_edits_in_a_notebook_count(edit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = EDITS[edit]
    assert old in CELLS
    before = fingerprint_of_task(run_cells(CELLS, monkeypatch).task)
    assert before == fingerprint_of_task(run_cells(f"# another cell\n\n{CELLS}", monkeypatch).task)
    assert before != fingerprint_of_task(run_cells(CELLS.replace(old, new), monkeypatch).task)


def test_a_global_that_another_cell_sets_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = run_cells(CELLS, monkeypatch)
    found = [fingerprint_of_task(notebook.task)]
    notebook.SCALE = 7
    found.append(fingerprint_of_task(notebook.task))
    notebook.shift = lambda x: x * 2
    found.append(fingerprint_of_task(notebook.task))
    notebook.TABLE["a"].append(3)
    found.append(fingerprint_of_task(notebook.task))
    assert len(set(found)) == 4


def test_globals_without_a_fingerprint_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    more = (
        "import logging, threading\nlog = logging.getLogger('x')\nlock = threading.Lock()\n"
        "numbers = (n for n in range(3))\nhandle = open(__import__('os').devnull)\n"
    )
    code = more + CELLS.replace("values = [", "(log, lock, numbers, handle); values = [")
    assert fingerprint_of_task(run_cells(code, monkeypatch).task)


def test_a_module_that_a_notebook_imports_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which Python knows by whole seconds only
    code = CELLS.replace("values = [", "import near; values = [")
    found = []
    for content in ("VALUE = 1", "VALUE = 2", "VALUE = 1"):
        forget_near()
        (tmp_path / "near.py").write_text(content)
        found.append(fingerprint_of_task(run_cells(code, monkeypatch).task))
    assert found[0] == found[2] != found[1]


def test_a_network_that_a_task_holds_counts_with_its_plain_attributes() -> None:
    class Teacher(torch.nn.Linear):
        temperature = 1.0

    teachers = [Teacher(2, 2) for _ in range(2)]
    teachers[1].load_state_dict(teachers[0].state_dict())
    first = fingerprint_of_task(SimpleNamespace(name="t", teacher=teachers[0]))  # type: ignore[arg-type]
    assert first == fingerprint_of_task(SimpleNamespace(name="t", teacher=teachers[1]))  # type: ignore[arg-type]
    teachers[1].temperature = 2.0
    assert first != fingerprint_of_task(SimpleNamespace(name="t", teacher=teachers[1]))  # type: ignore[arg-type]
