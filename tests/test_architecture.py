"""The house rules that a reader relies on, checked on the source itself."""

import ast
import configparser
import graphlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]

#: First words of docstrings that don't say what a module is.
RIDDLES = ("What", "Where", "Which", "How", "Whether", "Who")

#: Imports point to the left, or stay within a layer.
LAYERS = (
    "escaping",
    "errors",
    "progress",
    "version",
    "lazy",
    "tracing",
    "reprs",
    "suggestions",
    "arguments",
    "user_code",
    "sources",
    "parallel",
    "threads",
    "devices",
    "cache",
    "checkpoints",
    "arithmetic",
    "lora",
    "adapters",
    "symmetry",
    "labels",
    "clip",
    "networks",
    "pretrained",
    "tasks",
    "zoo",
    "matching",
    "spectra",
    "merging",
    "evidence",
    "connectivity",
    "soups",
    "searching",
    "runs",
    "plots",
    "demo",
    "cli",
    "__main__",
)

#: Library -> the only modules that import it.
DOORS = {
    "matplotlib": {"weightspace/plots/picture.py"},
    "open_clip": {"weightspace/clip.py"},
    "PIL": {"weightspace/zoo/images.py"},
    "tokenizers": {"weightspace/zoo/text_encoder.py", "weightspace/merging/tokenizers/splitting.py"},
    "sklearn": {"weightspace/zoo/digits.py", "weightspace/labels/classifier.py"},
    "transformers": {"weightspace/pretrained.py"},
    "safetensors": {"weightspace/checkpoints/safetensors_file.py"},
    "fsspec": {"weightspace/checkpoints/remote.py"},
    "ray": {"weightspace/parallel/ray.py"},
    "rich": {"cli/progress.py", "cli/printing.py"},
    "click": {str(path.relative_to(ROOT)) for path in (ROOT / "cli").glob("*.py")},
}


def sources() -> Iterator[Path]:
    yield from sorted((ROOT / "weightspace").rglob("*.py"))
    yield from sorted((ROOT / "cli").rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "weightspace" and len(parts) > 1 else None


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_one_list(path: Path) -> None:
    home = "cli" if path.parent.name == "cli" else path.relative_to(ROOT / "weightspace").with_suffix("").parts[0]
    if home == "__init__":
        return
    assert home in LAYERS, f"{home} has no place in the list of layers"
    for module, _ in imports(path):
        imported = layer(module)
        if imported is not None:
            assert LAYERS.index(imported) <= LAYERS.index(home), f"{path} imports {module}, which stands above it"


def test_no_file_imports_itself_through_others() -> None:
    files = {name_of(path): path for path in sources() if path.stem != "__init__"}
    graph = {name: {module for module, _ in imports(path)} & files.keys() for name, path in files.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_folder_imports_itself_through_others() -> None:
    modules = {name_of(path) for path in sources()}
    graph: dict[str, set[str]] = {}
    for path in sources():
        folder = ".".join(path.parent.relative_to(ROOT).parts)
        if folder == "weightspace" or path.stem == "__init__":
            continue  # what stands on no floor, and what names the public objects of a folder
        for module, _ in imports(path):
            other = module if f"{module}.__init__" in modules else module.rpartition(".")[0]
            if other.startswith("weightspace.") and other != folder:
                graph.setdefault(folder, set()).add(other)
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path) -> None:
    assert first_word(path) not in RIDDLES


@pytest.mark.parametrize("folder", ["tests", "analyses", "benchmarks", "docs"])
def test_scripts_and_tests_say_what_they_are(folder: str) -> None:
    assert [str(path) for path in (ROOT / folder).rglob("*.py") if first_word(path) in RIDDLES] == []


def first_word(path: Path) -> str:
    """Return the first word of a module's docstring."""
    return next(iter((ast.get_docstring(ast.parse(path.read_text())) or "").split()), "")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text()))
    yield from (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions(path)}
    assert {name: length for name, length in lengths.items() if length > 60} == {}  # with signature and docstring
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    assert [line for line in lines if line.startswith(("# --", "# =="))] == []  # a heading asks for a file


def name_of(path: Path) -> str:
    package = "weightspace.cli" if path.parent.name == "cli" else ".".join(path.parent.relative_to(ROOT).parts)
    return f"{package}.{path.stem}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_library_enters_by_its_door(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for module, _ in imports(path):
        door = DOORS.get(module.split(".")[0])
        assert door is None or relative in door, f"{relative} imports {module}; its door is {sorted(door or ())}"


def test_setup_cfg_lists_every_package_of_the_tree() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    tree = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in (ROOT / "weightspace").rglob("__init__.py")}
    assert listed == tree | {"weightspace.cli"}


def test_the_library_never_prints() -> None:
    for path in (ROOT / "weightspace").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), path


def test_nothing_is_unpickled() -> None:
    for path in sources():
        text = path.read_text()
        assert "weights_only=False" not in text
        assert "import pickle" not in text


def test_public_names_are_few_and_all_resolve() -> None:
    import weightspace as ws

    assert len(ws.__all__) <= 58
    assert all(hasattr(ws, name) for name in ws.__all__)


PACKAGES = sorted((ROOT / "weightspace").rglob("__init__.py"))


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_public_name_is_never_the_file_of_that_name(path: Path) -> None:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            for name, home in ast.literal_eval(node.value).items():
                importlib.import_module(f"{package}.{home}")
                assert not isinstance(getattr(importlib.import_module(package), name), ModuleType), f"{package}.{name}"
