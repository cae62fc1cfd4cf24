"""Write the model card of a merged folder: Hub metadata, recipe, notices and inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightspace.checkpoints.hub_names import hub_model
from weightspace.checkpoints.json_file import read_optional_json_object
from weightspace.errors import WeightspaceError
from weightspace.escaping import markdown_block, markdown_code, markdown_text, one_line
from weightspace.merging.plan.plan import Member, Plan

#: A Hub model in a URL, and in the ``_name_or_path`` of a configuration.
_URL = re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+?)(?:@[^/]+)?(?:/.*)?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

#: Non-weight file, key in it, and library that reads folders with this file and key.
_LIBRARIES = (
    ("model_index.json", "_diffusers_version", "diffusers"),
    ("modules.json", None, "sentence-transformers"),
    ("open_clip_config.json", None, "open_clip"),
    ("config.json", "_diffusers_version", "diffusers"),
    ("config.json", "pretrained_cfg", "timm"),
    ("config.json", "model_type", "transformers"),
)


def model_card(plan: Plan, parts: Path, metadata: Mapping[str, str]) -> str:
    """Return the text of the card.

    Args:
        plan: the plan of the merge.
        parts: the folder with all files but the card.
        metadata: provenance of the weights.
    """
    row = plan.method
    inputs = dict.fromkeys((entry["name"], entry["sha256"]) for entry in json.loads(metadata["inputs"]))
    lines = [
        "---",
        *_header(plan, parts),
        "---",
        "",
        f"# {markdown_text(plan.title)}",
        "",
        f"Merged by {metadata['version']} with the method {markdown_code(row.name)}"
        + (f" ({markdown_text(row.formula)}; {markdown_text(row.source)})." if row.formula else "."),
        "",
        "## Recipe",
        "",
        markdown_block(metadata["recipe"].strip(), "yaml"),
        "",
        *_notices(plan),
        "## Input files",
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *(f"| {markdown_code(name)} | `{digest or 'not taken'}` |" for name, digest in inputs),
        "",
    ]
    return "\n".join(lines)


def _header(plan: Plan, parts: Path) -> Iterator[str]:
    """Yield the Hub metadata: names of the merged models and adapters, and the library, as far as known."""
    known = (name for member in _models(plan) for name in _hub_names(member))
    names = list(dict.fromkeys(name for name in known if name is not None))
    if names:
        yield from ("base_model:", *(f"- {name}" for name in names), "base_model_relation: merge")
    if (library := _library(parts)) is not None:
        yield f"library_name: {library}"
    yield from ("tags:", "- merge", "- weightspace")


def _models(plan: Plan) -> Iterator[Member]:
    """Yield the merged checkpoints; intermediate results are replaced by the checkpoints they are computed from."""
    for member in plan.members:
        yield from (member,) if member.plan is None else _models(member.plan)


def _hub_names(member: Member) -> Iterator[str | None]:
    """Yield the names of a model and its adapter on the Hub; None if unknown."""
    yield _hub_name(member.source, member.contents.path)
    if member.adapter is not None:
        adapter = hub_model(member.source.partition("+")[2])
        yield None if adapter is None else adapter.name


def _hub_name(source: str, path: Path) -> str | None:
    """Return a model's name on the Hub, from the recipe or else from its configuration; None if unknown."""
    if (model := hub_model(source.partition("+")[0])) is not None:
        return model.name
    if (match := _URL.fullmatch(source.partition("+")[0])) is not None:
        return match[1]
    named = str(_json(path / "config.json").get("_name_or_path", "")) if path.is_dir() else ""
    return named if _HUB_NAME.fullmatch(named) and not Path(named).exists() else None


def _library(parts: Path) -> str | None:
    """Return the library that reads the folder; None if no file identifies it."""
    for name, key, library in _LIBRARIES:
        if (parts / name).is_file() and (key is None or key in _json(parts / name)):
            return library
    return None


def _json(path: Path) -> Mapping[str, Any]:
    """Return the JSON object of a file; an empty one if it is missing or damaged."""
    try:
        return read_optional_json_object(path)
    except WeightspaceError:
        return {}


def _notices(plan: Plan) -> list[str]:
    """Return the section of notices, if there are any."""
    if not plan.notices:
        return []
    return ["## Notices", "", *(f"- {markdown_text(one_line(line))}" for line in plan.notices), ""]
