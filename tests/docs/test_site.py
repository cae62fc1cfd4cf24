"""Checks of the site beyond the strict build: pictures, and pages that need no network."""

import importlib.util
import re
from pathlib import Path

import build_docs
import pytest

import weightspace as ws


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    build_docs.assemble(folder)
    return folder


def test_every_merge_method_command_and_public_name_has_a_page(pages: Path) -> None:
    from weightspace import cli
    from weightspace.matching import MANY_MATCHINGS, MATCHINGS

    assert {path.stem for path in (pages / "merge-methods").glob("*.md")} == {"index", *ws.METHODS}
    assert {path.stem for path in (pages / "matching-methods").glob("*.md")} == {"index", *MATCHINGS, *MANY_MATCHINGS}
    assert {path.stem for path in (pages / "command-line").glob("*.md")} == {"index", *cli.COMMANDS}
    assert {path.stem for path in (pages / "reference").glob("*.md")} == {"index", *ws.__all__}


def test_a_page_of_the_reference_shows_the_name_and_not_a_module_of_the_same_name(pages: Path) -> None:
    for page in (pages / "reference").rglob("*.md"):
        for path in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            package = importlib.import_module(path.rpartition(".")[0])
            is_module = hasattr(package, "__path__") and importlib.util.find_spec(path) is not None
            assert not is_module, f"{page.name}: {path} is a module"


def test_pictures_are_there_and_none_comes_from_a_server(pages: Path) -> None:
    for page in pages.rglob("*.md"):
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / picture).is_file(), f"{page.relative_to(pages)}: {picture}"


def test_pages_refer_to_public_names_only() -> None:
    keys = {("labels", "kind"), ("labels", "names"), ("labels", "root")}  # of metadata
    for page in (build_docs.DOCS / "pages").rglob("*.md"):
        found = set(re.findall(r"weightspace\.([a-z]\w*)\.(\w+)", page.read_text(encoding="utf-8")))
        for package, name in found - keys:
            module = importlib.import_module(f"weightspace.{package}")
            rules = (package, name) == ("symmetry", "rules")  # the table that a page shows how to extend
            assert rules or name in module.__all__, f"{page.name}: weightspace.{package}.{name}"
