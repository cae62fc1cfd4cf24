"""Links of the README and of the hand-written pages lead to files, in the repository and on the site."""

import re
from pathlib import Path

import build_docs
import pytest
from generators import links

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
WRITTEN = [*sorted(ROOT.glob("*.md")), *(ROOT / folder / "README.md" for folder in ("analyses", "benchmarks"))]
WRITTEN += sorted(PAGES.rglob("*.md"))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert "build" not in target.resolve().relative_to(ROOT).parts, path
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_the_links_of_the_site_lead_to_its_pages(tmp_path: Path) -> None:
    build_docs.assemble(tmp_path)
    for page in tmp_path.rglob("*.md"):
        for path, _ in LINK.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), f"{page.relative_to(tmp_path)}: {path}"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../../../cli/extract_lora.py", "../command-line/extract-lora.md"),
        ("../../../benchmarks/README.md#rounding", "../benchmarks.md#rounding"),
        ("../../../weightspace/merging/methods/ties.py", "../merge-methods/ties.md"),
        ("../tutorials/merge.md", "../tutorials/merge.md"),
        ("task.md", "task.md"),
    ],
)
def test_a_link_to_a_source_file_leads_to_its_page_on_the_site(link: str, expected: str) -> None:
    assert links.on_the_site(f"See [this]({link}).", "how-to/page.md") == f"See [this]({expected})."


def test_a_picture_is_a_link_to_its_full_size_on_the_site() -> None:
    shown = "[![Two curves](../pictures/demo.png)](../pictures/demo.png)"
    assert links.on_the_site("![Two curves](../../demo.png)\n", "tutorials/page.md") == f"{shown}\n"


def test_a_link_to_a_file_without_a_page_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"how-to/page\.md links to setup\.cfg"):
        links.on_the_site("[this](../../../setup.cfg)", "how-to/page.md")
