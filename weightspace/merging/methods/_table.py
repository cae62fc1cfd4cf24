"""The table of merge methods as JSON, generated from their declarations so that planning a merge imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weightspace.merging.methods._registry import Method, Parameter

#: Written by ``python -m weightspace.merging.methods``; CI compares it with the declarations.
TABLE = Path(__file__).with_name("methods.json")


def read_table() -> dict[str, Method]:
    """Return the rows by name."""
    rows = [_row(content) for content in json.loads(TABLE.read_text(encoding="utf-8"))]
    return {row.name: row for row in rows}


def table_of(rows: Iterable[Method]) -> str:
    """Return the table as text: per row, the attributes that differ from the default."""
    return json.dumps([_content(row) for row in rows], indent=1, ensure_ascii=False) + "\n"


def _row(content: dict[str, Any]) -> Method:
    parameters = tuple(Parameter(**_with_tuples(parameter)) for parameter in content.pop("parameters", ()))
    return Method(parameters=parameters, **_with_tuples(content))


def _with_tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _content(row: Method | Parameter) -> dict[str, Any]:
    content = {
        field.name: getattr(row, field.name)
        for field in dataclasses.fields(row)
        if getattr(row, field.name) != field.default
    }
    if "parameters" in content:
        content["parameters"] = [_content(parameter) for parameter in content["parameters"]]
    return content
