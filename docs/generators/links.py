"""Links of the hand-written pages: to files of the repository, where readers of the source follow them.

On the site, a link that leaves ``docs/pages`` leads to the page that is generated from the file, and a picture is a
link to itself in its full size, which phones need.
"""

from __future__ import annotations

import posixpath
import re

#: Folder of the hand-written pages in the repository.
_PAGES = "docs/pages"

#: A relative link or picture: its start, path and anchor.
_LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)(#[^)\s]*)?(?=\))")

#: A picture that is a paragraph: its Markdown and its path.
_PICTURE = re.compile(r"^(!\[[^\]]*\]\(([^)\s]+)\))$", re.MULTILINE)

#: Pattern of a file in the repository -> the page or picture that the site has in its place, the first that matches.
_ON_THE_SITE = (
    (r"README\.md", "index.md"),
    (r"benchmarks/README\.md", "benchmarks.md"),
    (r"analyses/README\.md", "claims.md"),
    (r"docs/demo\.png", "pictures/demo.png"),
    (r"analyses/figures/([\w.-]+\.png)", r"pictures/\1"),
    (r"cli/__init__\.py", "command-line/index.md"),
    (r"cli/(\w+)\.py", r"command-line/\1.md"),
    (r"weightspace/merging/methods", "merge-methods/index.md"),
    (r"weightspace/merging/methods/([a-z]\w*)\.py", r"merge-methods/\1.md"),
    (r"weightspace/matching/registry\.py", "matching-methods/index.md"),
    (r"weightspace/__init__\.py", "reference/index.md"),
    (r"weightspace/(\w+)/__init__\.py", r"reference/packages/\1.md"),
)


def on_the_site(text: str, page: str) -> str:
    """Return the Markdown of a page with its links to files of the repository replaced by those to pages of the site.

    Pictures that stand on a line of their own become links to themselves.

    Args:
        text: the Markdown.
        page: path of the page below ``docs/pages``.

    Raises:
        ValueError: a link leads to a file that the site has no page for.
    """
    folder = posixpath.dirname(page)

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(_PAGES, folder, link[2]))
        if path.startswith(f"{_PAGES}/"):
            return link[0]
        return link[1] + posixpath.relpath(_page_of(path, page), folder or ".") + (link[3] or "")

    return _PICTURE.sub(r"[\1](\2)", _LINK.sub(replaced, text))


def _page_of(path: str, page: str) -> str:
    """Return the page or picture of the site that stands for a file of the repository."""
    for pattern, target in _ON_THE_SITE:
        if (match := re.fullmatch(pattern, path)) is not None:
            found = match.expand(target)
            return found.replace("_", "-") if found.startswith("command-line/") else found
    raise ValueError(f"{page} links to {path}, which is no page of the site; add it to docs/generators/links.py.")
