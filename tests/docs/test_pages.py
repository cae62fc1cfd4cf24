"""The code of the pages is executed as a reader would: the blocks of a page in order, in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from generators import matching_methods, merge_methods, reference

import weightspace as ws
from weightspace import cli
from weightspace.matching import MANY_MATCHINGS, MATCHINGS
from weightspace.merging.recipe.parse import parse_recipe

PAGES = Path(__file__).parents[2] / "docs" / "pages"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run(text: str, name: str) -> dict[str, object]:
    """Run the Python of a page, and its commands without leaving the process."""
    names: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for language, block in BLOCK.findall(text):
            if language == "python":
                exec(compile(block, name, "exec"), names)
                continue
            for line in block.splitlines():
                arguments = shlex.split(line, comments=True)
                assert arguments[0] == "weightspace", line
                result = CliRunner().invoke(cli.main, arguments[1:], catch_exceptions=False)
                assert result.exit_code == 0, f"{line}: {result.output}"
    return names


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))


WITH_CODE = [path for path in sorted(PAGES.rglob("*.md")) if BLOCK.search(path.read_text(encoding="utf-8"))]


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: str(path.relative_to(PAGES)))
def test_the_code_of_a_page_runs(path: Path) -> None:
    run(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("name", ws.METHODS)
def test_the_example_of_a_merge_method_runs(name: str) -> None:
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(merge_methods.example(ws.METHODS[name]), names)
    merged = names["merged"]
    assert isinstance(merged, dict)
    assert merged["layer.weight"].shape == (8, 16)


@pytest.mark.parametrize("row", [*MATCHINGS.values(), *MANY_MATCHINGS.values()], ids=lambda row: row.name)
def test_the_example_of_a_matching_method_runs(row: object) -> None:
    exec(matching_methods.example(row, several=row in MANY_MATCHINGS.values()), {})


@pytest.mark.parametrize("name", reference.DATA)
def test_the_example_of_a_name_without_docstring_runs(name: str) -> None:
    run(reference.DATA[name], name)


@pytest.mark.parametrize("name", ws.METHODS)
def test_the_recipe_of_a_merge_method_is_one(name: str) -> None:
    recipe = parse_recipe(merge_methods.recipe(ws.METHODS[name]), name)
    assert recipe.method == name
