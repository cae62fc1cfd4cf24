"""The settings of a quantised output: ``quantise: fp8-block``, or a mapping with ``scheme`` and ``ignore``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.merging.recipe.document import Document, kind
from weightspace.merging.recipe.types import SCHEMES, Quantise
from weightspace.suggestions import unknown

_KEYS = ("scheme", "ignore")


def quantise_key(document: Document, top: Mapping[str, Any]) -> Quantise | None:
    """Return how matrices of the output are quantised, or None.

    Raises:
        WeightspaceError: the scheme is unknown, or a value has another type.
    """
    value = top.get("quantise")
    if value is None:
        return None
    content = {"scheme": value} if isinstance(value, str) else document.mapping(value, "quantise")
    document.known(content, _KEYS, "quantise")
    scheme, ignore = content.get("scheme"), content.get("ignore") or ()
    if scheme not in SCHEMES:
        raise unknown(f"scheme in {document.where}, quantise:", str(scheme), SCHEMES)
    if not isinstance(ignore, list | tuple) or not all(isinstance(part, str) and part for part in ignore):
        raise document.error("quantise.ignore", f"must be a list of parts of tensor names, found {kind(ignore)}")
    return Quantise(str(scheme), tuple(ignore))
