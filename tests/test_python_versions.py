"""All code runs on Python 3.10, the oldest version that pyproject.toml names, and is tested on each that it lists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for top in ("weightspace", "cli", "tests", "docs", "analyses", "benchmarks")
    for path in (ROOT / top).rglob("*.py")
]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

#: Names that the standard library has from Python 3.11, 3.12 or 3.13 on, by their modules.
NEWER = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout"},
    "builtins": {"BaseExceptionGroup", "EncodingWarning", "ExceptionGroup", "PythonFinalizationError"},
    "calendar": {"Day", "Month"},
    "collections.abc": {"Buffer"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "FlagBoundary", "ReprEnum", "StrEnum", "member", "nonmember", "property", "verify"},
    "hashlib": {"file_digest"},
    "inspect": {"BufferFlags", "getasyncgenstate", "markcoroutinefunction"},
    "itertools": {"batched"},
    "logging": {"getHandlerByName", "getHandlerNames", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call"},
    "os": {"process_cpu_count"},
    "os.path": {"isdevdrive", "isjunction", "isreserved", "splitroot"},
    "random": {"binomialvariate"},
    "re": {"NOFLAG"},
    "string": {"get_identifiers"},
    "sys": {"activate_stack_trampoline", "exception", "monitoring"},
    "threading": {"setprofile_all_threads", "settrace_all_threads"},
    "types": {"CapsuleType", "get_original_bases"},
    "typing": {
        *("LiteralString", "Never", "NotRequired", "Required", "Self", "TypeVarTuple", "Unpack", "assert_never"),
        *("assert_type", "clear_overloads", "dataclass_transform", "get_overloads", "reveal_type"),
        *("NoDefault", "ReadOnly", "TypeAliasType", "TypeIs", "get_protocol_members", "is_protocol", "override"),
    },
    "warnings": {"deprecated"},
}
#: Modules of Python 3.11 and later.
NEWER_MODULES = {"tomllib", "wsgiref.types", "pathlib.types"}
#: Methods of Python 3.11 and later whose names nothing else has.
NEWER_METHODS = {"add_note", "is_junction", "full_match", "batched"}


def newer_names(code: str) -> list[str]:
    """Return what a file uses that Python 3.10 does not have, with the lines; its syntax is checked by the parser."""
    found = []
    for node in ast.walk(ast.parse(code, feature_version=(3, 10))):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            found += [f"{line}: {name.name}" for name in node.names if name.name in NEWER_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = NEWER.get(node.module or "", set())
            found += [f"{line}: {node.module}.{name.name}" for name in node.names if name.name in names]
            found += [f"{line}: {node.module}"] if node.module in NEWER_MODULES else []
        elif isinstance(node, ast.Attribute):
            if node.attr in NEWER_METHODS or node.attr in NEWER.get(ast.unparse(node.value), set()):
                found.append(f"{line}: {ast.unparse(node)}")
        elif isinstance(node, ast.Name) and node.id in NEWER["builtins"]:
            found.append(f"{line}: {node.id}")
        elif type(node).__name__ == "TryStar":  # which the parser of 3.11 takes whatever the version
            found.append(f"{line}: except*")
    return found


def test_no_file_needs_more_than_python_3_10() -> None:
    assert len(FILES) > 400
    newer = {str(path.relative_to(ROOT)): newer_names(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: names for path, names in newer.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import tomllib",
        "from tomllib import loads",
        "from typing import Self",
        "import typing\ntyping.override",
        "from enum import StrEnum",
        "import datetime\ndatetime.UTC",
        "import itertools\nitertools.batched",
        "import os\nos.process_cpu_count()",
        "raise ExceptionGroup('', [])",
        "error.add_note('x')",
        "try:\n    pass\nexcept* ValueError:\n    pass",
    ],
)
def test_a_newer_name_is_found(code: str) -> None:
    try:
        assert newer_names(code)
    except SyntaxError:  # by an interpreter that does not know the syntax itself
        assert "except*" in code


def test_names_of_python_3_10_pass() -> None:
    assert not newer_names("import os\nfrom typing import TypeAlias\nos.walk('.')\nzip([1], [2], strict=True)")


def test_the_versions_that_are_tested_are_those_that_are_declared() -> None:
    declared = re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r'"(3\.\d+)"', workflow) == declared
    oldest = declared[0]
    assert f'requires-python = ">={oldest}"' in PYPROJECT
    assert f'pythonVersion = "{oldest}"' in PYPROJECT
    assert f'target-version = "py{oldest.replace(".", "")}"' in PYPROJECT


def test_the_workflow_and_the_hooks_run_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "- run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    for command in ("ruff check", "ruff format --check", "basedpyright"):
        assert f"\n{command}" in script
        assert f"entry: {command}" in hooks
