"""Model references of recipes: ``MODEL``, ``MODEL@REVISION``, ``MODEL+ADAPTER``, and mergekit's mapping of these.

The mapping is ``{model: {path: …, revision: …}, lora: {path: …, revision: …}, override_architecture: …}``. The last is
accepted and needs nothing: tensors are found by their names, not by a list of architectures.
"""

from __future__ import annotations

from typing import Any

from weightspace.merging.recipe.document import Document, join, kind


def model_reference(document: Document, value: Any, path: str) -> str | None:
    """Return a reference as text.

    Args:
        document: what the reference stands in.
        value: text, a mapping, or None.
        path: where it stands.

    Returns:
        ``MODEL``, ``MODEL@REVISION``, with ``+ADAPTER`` where it has one; None for None.

    Raises:
        WeightspaceError: it is something else, or has an unknown key.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or "path" in value:
        return _located(document, value, path)
    content = document.mapping(value, path)
    document.known(content, ("model", "lora", "override_architecture"), path)
    if content.get("model") is None:
        raise document.error(join(path, "model"), "is missing: expected the path of a checkpoint")
    model = _located(document, content["model"], join(path, "model"))
    if content.get("lora") is None:
        return model
    return f"{model}+{_located(document, content['lora'], join(path, 'lora'))}"


def without_adapter(reference: str) -> str:
    """Return the model of a reference by name: what precedes the adapter."""
    return reference.partition("+")[0]


def _located(document: Document, value: Any, path: str) -> str:
    """Return a path with its revision, from text or from ``{path: …, revision: …}``."""
    if not isinstance(value, dict):
        if not isinstance(value, str) or not value:
            raise document.error(path, f"is a path, or a mapping of path and revision, found {kind(value)}")
        return value
    content = document.mapping(value, path)
    document.known(content, ("path", "revision"), path)
    location, revision = document.text(content, "path", path), document.text(content, "revision", path)
    if location is None:
        raise document.error(join(path, "path"), "is missing: expected the path of a checkpoint")
    return location if revision is None else f"{location}@{revision}"
