"""Build the documentation: the pages in docs/pages and those generated from the library, as a site in build/docs/site.

Run ``python docs/build_docs.py`` after ``pip install -e ".[docs]"``. It needs no network: the theme, fonts and formulas
are local.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILD = ROOT / "build" / "docs"
sys.path.insert(0, str(DOCS))

from generators import command_line, links, matching_methods, measurements, merge_methods, reference  # noqa: E402

#: Folder of generated pages -> its generator.
GENERATORS = {
    "merge-methods": merge_methods.pages,
    "matching-methods": matching_methods.pages,
    "command-line": command_line.pages,
    "reference": reference.pages,
    "measurements": measurements.pages,
}


def assemble(target: Path) -> dict[str, list[str]]:
    """Write all pages to a folder, and return the generated ones by subfolder."""
    shutil.copytree(DOCS / "pages", target, ignore=shutil.ignore_patterns("*.toml", ".*"), dirs_exist_ok=True)
    for page in target.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(links.on_the_site(text, page.relative_to(target).as_posix()), encoding="utf-8")
    pictures = target / "pictures"
    pictures.mkdir(exist_ok=True)
    for picture in [DOCS / "demo.png", *sorted((ROOT / "analyses" / "figures").glob("*.png"))]:
        shutil.copy(picture, pictures)
    written: dict[str, list[str]] = {}
    for folder, generate in GENERATORS.items():
        for path, text in generate():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")
            written.setdefault(folder, []).append(path)
    return written


def configure(written: dict[str, list[str]]) -> str:
    """Return the configuration with folders in the navigation replaced by their generated pages."""
    config = yaml.safe_load((DOCS / "mkdocs.yml").read_text(encoding="utf-8"))
    for entry in config["nav"]:
        for title, value in entry.items():
            if isinstance(value, str) and value in GENERATORS:
                entry[title] = _tree(value, written[value])
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _tree(folder: str, paths: list[str]) -> list[object]:
    """Return the navigation of a folder of generated pages: the overview, then pages by name, or by API section."""
    title = {path: Path(path).stem for path in paths}
    if folder == "measurements":
        return list(paths)
    if folder != "reference":
        return [paths[0], *({title[path]: path} for path in paths[1:])]
    sections = [
        {section: [{name: f"reference/{name}.md"} for name in names]} for section, names in reference.SECTIONS.items()
    ]
    packages = [{f"weightspace.{title[path]}": path} for path in paths if "/packages/" in path]
    return [paths[0], *sections, {"Subpackages": packages}]


def build() -> int:
    """Build the site and return the exit status: broken links, anchors and references are errors."""
    shutil.rmtree(BUILD, ignore_errors=True)
    written = assemble(BUILD / "pages")
    (BUILD / "mkdocs.yml").write_text(configure(written), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(DOCS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", "mkdocs.yml"]
    return subprocess.run(command, cwd=BUILD, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(build())
