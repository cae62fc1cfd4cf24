"""Griffe extension: the docstrings of the API reference as Markdown."""

from __future__ import annotations

from typing import Any

import griffe

from generators.docstrings import as_markdown


class Docstrings(griffe.Extension):
    """Griffe extension: every docstring passes through ``as_markdown``."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
