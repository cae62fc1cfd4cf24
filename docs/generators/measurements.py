"""Pages of measurements: benchmarks/README.md and analyses/README.md, with links rewritten for the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of every page."""
    for folder, page in (("benchmarks", "benchmarks.md"), ("analyses", "claims.md")):
        text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
        yield page, _on_the_site(text, folder)


def _on_the_site(text: str, folder: str) -> str:
    """Return a README with figures linked on the site, and links to repository files replaced by their names."""
    linked = text.replace("](figures/", "](pictures/").replace("](../benchmarks/README.md", "](benchmarks.md")
    return _LINK.sub(lambda link: link[0] if link[2].startswith("benchmarks.md") else _named(link[2], folder), linked)


def _named(path: str, folder: str) -> str:
    return f"`{folder}/{path}`" if not path.startswith("..") else f"`{path.removeprefix('../')}`"
