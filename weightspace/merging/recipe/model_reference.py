"""Model references in recipes: ``MODEL``, ``MODEL@REVISION``, ``MODEL+ADAPTER``, and mergekit's mapping form.

The mapping is ``{model: {path: …, revision: …}, lora: {path: …, revision: …}, override_architecture: …}``, or the same
with ``path`` and ``revision`` instead of ``model``. ``override_architecture`` is accepted and has no effect: tensors
are found by name, not by a list of architectures.
"""

from __future__ import annotations

from typing import Any

from weightspace.merging.recipe.document import Document, join, kind

#: Keys that locate a model, and further keys of a model's mapping.
PATH_KEYS = ("path", "revision")
REFERENCE_KEYS = ("lora", "override_architecture")


def model_reference(document: Document, value: Any, path: str) -> str | None:
    """Return a model reference as a string.

    Args:
        document: the document that contains the reference.
        value: a string, a mapping, or None.
        path: path of the reference in the document.

    Returns:
        ``MODEL`` or ``MODEL@REVISION``, followed by ``+ADAPTER`` if the reference has an adapter; None for None.

    Raises:
        WeightspaceError: the value has another type, or an unknown key.
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
    """Return a reference without its adapter."""
    return reference.partition("+")[0]


def _located(document: Document, value: Any, path: str) -> str:
    """Return a path with its revision, given a string or ``{path: …, revision: …}``."""
    if not isinstance(value, dict):
        if not isinstance(value, str) or not value:
            raise document.error(path, f"must be a path or a mapping of path and revision, found {kind(value)}")
        return value
    content = document.mapping(value, path)
    document.known(content, PATH_KEYS, path)
    location, revision = document.text(content, "path", path), document.text(content, "revision", path)
    if location is None:
        raise document.error(join(path, "path"), "is missing: expected the path of a checkpoint")
    return location if revision is None else f"{location}@{revision}"
