"""Model references of recipes: ``MODEL``, ``MODEL@REVISION``, ``MODEL+ADAPTER``, and mergekit's mapping of these.

The mapping is ``{model: {path: …, revision: …}, lora: {path: …, revision: …}, override_architecture: …}``, or the same
with ``path`` and ``revision`` in the place of ``model``. ``override_architecture`` is accepted and needs nothing:
tensors are found by their names, not by a list of architectures.
"""

from __future__ import annotations

from typing import Any

from weightspace.merging.recipe.document import Document, join, kind

#: Keys of a path, and those beside a model in a mapping.
PATH_KEYS = ("path", "revision")
REFERENCE_KEYS = ("lora", "override_architecture")


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
    if not isinstance(value, dict):
        return _located(document, value, path)
    content = document.mapping(value, path)
    keys = PATH_KEYS if "path" in content else ("model",)
    document.known(content, (*keys, *REFERENCE_KEYS), path)
    if keys == PATH_KEYS:
        model = _located(document, {key: content[key] for key in PATH_KEYS if key in content}, path)
    elif content.get("model") is None:
        raise document.error(join(path, "model"), "is missing: expected the path of a checkpoint")
    else:
        model = _located(document, content["model"], join(path, "model"))
    document.text(content, "override_architecture", path)
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
    document.known(content, PATH_KEYS, path)
    location, revision = document.text(content, "path", path), document.text(content, "revision", path)
    if location is None:
        raise document.error(join(path, "path"), "is missing: expected the path of a checkpoint")
    return location if revision is None else f"{location}@{revision}"
