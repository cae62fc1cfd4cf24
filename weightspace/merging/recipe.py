"""Recipes: what to merge and how, in mergekit's YAML.

Paths are relative to the working directory. Reading is strict: what is not known is an error that names the key, or a
warning where the caller takes warnings. Beyond mergekit are ``evidence`` and ``stack`` of a source, and more methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightspace.checkpoints.disk import one_line_errors
from weightspace.errors import WeightspaceError
from weightspace.merging.methods import Method
from weightspace.merging.roles import find_method
from weightspace.suggestions import unknown

#: Takes a line about something that a strict reading refuses.
Warn = Callable[[str], None]

#: What the output's dtype can be.
DTYPES = ("float32", "float16", "bfloat16", "float64")

_TOP = (
    *("merge_method", "base_model", "models", "slices", "parameters"),
    *("dtype", "out_dtype", "tokenizer_source", "tokenizer"),
)

#: Keys of mergekit that change what comes out and that we refuse.
_REFUSED = {
    "modules": "models of several modules",
    "chat_template": "a chat template of its own: the base's is copied",
}


@dataclass(frozen=True)
class Source:
    """A model of a slice.

    Attributes:
        model: its path as written; ``MODEL+ADAPTER`` adds a LoRA adapter.
        parameters: its own settings.
        layer_range: the layers that it gives, from the first up to the second; None: the whole model.
        evidence: path of its statistics of data, or None.
        stack: path of the stack of layers that ``layer_range`` counts, where the model has several; None: the text
            model's.
    """

    model: str
    parameters: Mapping[str, Any]
    layer_range: tuple[int, int] | None
    evidence: str | None
    stack: str | None = None


@dataclass(frozen=True)
class Slice:
    """Sources that are merged into some layers, or into a whole model."""

    sources: tuple[Source, ...]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A merge as it is written down.

    Attributes:
        method: name of the method.
        base: path of the base, or None.
        slices: from the first layers to the last; one without layer ranges merges models whole.
        parameters: settings of all slices.
        dtype, out_dtype: of the output; the latter has the last word. None: that of the inputs.
        tokenizer_source: ``base``, ``union``, a path, or None.
        content: everything, as YAML has it.
    """

    method: str
    base: str | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Any]
    dtype: str | None
    out_dtype: str | None
    tokenizer_source: str | None
    content: Mapping[str, Any]

    def to_yaml(self) -> str:
        """Return the recipe as YAML; equal recipes give equal text."""
        return yaml.safe_dump(dict(self.content), sort_keys=False, allow_unicode=True)


def read_recipe(path: Path, *, warn: Warn | None = None) -> Recipe:
    """Read a recipe from a file.

    Args:
        path: a YAML file.
        warn: takes a line for every key that is not known; None: that is an error.

    Raises:
        WeightspaceError: the file cannot be read, or says something that is not understood; the message names the key.
    """
    with one_line_errors(path, "read"):
        text = path.read_text(encoding="utf-8", errors="replace")
    return parse_recipe(text, str(path), warn=warn)


def parse_recipe(text: str, where: str, *, warn: Warn | None = None) -> Recipe:
    """Read a recipe from text; ``where`` is what errors call it. See ``read_recipe``."""
    try:
        documents = list(yaml.load_all(text, _UniqueKeys)) or [None]
    except yaml.YAMLError as error:
        raise WeightspaceError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    if len(documents) != 1:
        raise WeightspaceError(
            f"{where} has {len(documents)} YAML documents; expected one recipe. Merge them one by one."
        )
    return _Reader(where, warn).recipe(documents[0])


def recipe_of(
    sources: Sequence[str],
    method: str,
    *,
    base: str | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    evidence: Sequence[str] | None = None,
    dtype: str | None = None,
    out_dtype: str | None = None,
    warn: Warn | None = None,
) -> Recipe:
    """Return the recipe of models that are merged whole.

    Args:
        sources: their paths.
        method: name of the method.
        base: path of the base.
        weights: one a model.
        parameters: of the method by name; those that may differ by model take a list, one value a model.
        evidence: paths of statistics of data, one a model.
        dtype, out_dtype: of the output.
        warn: see ``read_recipe``.

    Raises:
        WeightspaceError: a list has not one value a model, or as ``read_recipe``.
    """
    row = find_method(method)
    if weights is not None and not row.weighted:
        words = ", ".join(one.name for one in row.parameters) or "no parameters"
        raise WeightspaceError(f"Method {method!r} takes no weights, found {list(weights)}; expected {words}.")
    models: list[dict[str, Any]] = [{"model": source} for source in sources]
    shared: dict[str, Any] = {}
    per_model = {one.name for one in row.parameters if one.per_model}
    lists = {"weight": weights, **(parameters or {})}
    for name, value in lists.items():
        if isinstance(value, list | tuple) and (name == "weight" or name in per_model):
            for model, one in zip(models, _one_each(name, value, len(models)), strict=True):
                model.setdefault("parameters", {})[name] = one
        elif value is not None:
            shared[name] = value
    for model, path in zip(models, _one_each("evidence", evidence or [None] * len(models), len(models)), strict=True):
        if path is not None:
            model["evidence"] = path
    content = {"merge_method": method, "models": models, "base_model": base, "parameters": shared}
    content |= {"dtype": dtype, "out_dtype": out_dtype}
    return _Reader("the options", warn).recipe({key: value for key, value in content.items() if value})


def _one_each(name: str, values: Sequence[Any], models: int) -> Sequence[Any]:
    if len(values) != models:
        raise WeightspaceError(f"Found {len(values)} values of {name!r} for {models} models; expected one a model.")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """Reads plain YAML and refuses a key that comes twice, of which the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} comes twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


class _Reader:
    """Turns YAML into a recipe; knows where it is for the errors."""

    def __init__(self, where: str, warn: Warn | None) -> None:
        self.where = where
        self.warn = warn

    def recipe(self, content: Any) -> Recipe:
        """Return the recipe of a document."""
        top = self._mapping(content, "the recipe")
        for key, what in _REFUSED.items():
            if key in top:
                raise self._error(key, f"{what}, is not supported. Leave it out")
        self._known(top, _TOP, "")
        name = self._text(top, "merge_method", "")
        if name is None:
            raise self._error("merge_method", "is missing: expected the name of a method")
        row = find_method(name)
        if ("models" in top) == ("slices" in top):
            raise self._error("models", "or slices: expected one of the two")
        return Recipe(
            name,
            self._text(top, "base_model", ""),
            self._slices(top, row),
            self._parameters(top, row, ""),
            self._dtype(top, "dtype"),
            self._dtype(top, "out_dtype"),
            self._tokenizer(top),
            top,
        )

    def _slices(self, top: Mapping[str, Any], row: Method) -> tuple[Slice, ...]:
        if "models" in top:
            models = self._list(top["models"], "models")
            sources = [self._source(one, f"models[{i}]", row, sliced=False) for i, one in enumerate(models)]
            return (Slice(tuple(sources), {}),)
        return tuple(
            self._slice(one, f"slices[{index}]", row) for index, one in enumerate(self._list(top["slices"], "slices"))
        )

    def _slice(self, content: Any, path: str, row: Method) -> Slice:
        part = self._mapping(content, path)
        self._known(part, ("sources", "parameters"), path)
        sources = self._list(part.get("sources"), f"{path}.sources")
        found = [self._source(one, f"{path}.sources[{i}]", row, sliced=True) for i, one in enumerate(sources)]
        return Slice(tuple(found), self._parameters(part, row, path))

    def _source(self, content: Any, path: str, row: Method, *, sliced: bool) -> Source:
        source = self._mapping(content, path)
        self._known(source, ("model", "parameters", "evidence", *(("layer_range", "stack") if sliced else ())), path)
        model = self._text(source, "model", path)
        if model is None:
            raise self._error(f"{path}.model", "is missing: expected the path of a checkpoint")
        layers = self._layer_range(source, path) if sliced else None
        stack = self._text(source, "stack", path) if sliced else None
        return Source(model, self._parameters(source, row, path), layers, self._text(source, "evidence", path), stack)

    def _layer_range(self, source: Mapping[str, Any], path: str) -> tuple[int, int]:
        found = source.get("layer_range")
        if not isinstance(found, list) or len(found) != 2 or not all(type(bound) is int for bound in found):
            raise self._error(f"{path}.layer_range", f"is two whole numbers, [first, end), found {found!r}")
        if not 0 <= found[0] < found[1]:
            raise self._error(f"{path}.layer_range", f"is empty or negative: {found}")
        return found[0], found[1]

    def _parameters(self, holder: Mapping[str, Any], row: Method, path: str) -> dict[str, Any]:
        """Return the parameters that a part of the recipe sets, without those that mean nothing here."""
        path = f"{path}.parameters" if path else "parameters"
        found = self._mapping(holder.get("parameters") or {}, path)
        known = [parameter.name for parameter in row.parameters] + (["weight"] if row.weighted else [])
        self._known(found, (*known, "int8_mask"), path, f" of method {row.name!r}")
        return {key: self._setting(found[key], f"{path}.{key}") for key in known if key in found}

    def _setting(self, value: Any, path: str) -> Any:
        """Return a scalar, a gradient or a list of filters with values."""
        if not isinstance(value, list):
            return self._scalar(value, path)
        if not value:
            raise self._error(path, "is an empty list: expected a gradient of numbers, or filters")
        if not any(isinstance(one, dict) for one in value):
            return [self._anchor(one, path) for one in value]
        choices = []
        for index, one in enumerate(value):
            here = f"{path}[{index}]"
            choice = self._mapping(one, here)
            self._known(choice, ("filter", "value"), here)
            if "value" not in choice:
                raise self._error(f"{here}.value", "is missing")
            choices.append({**choice, "filter": self._text(choice, "filter", here)})
            choices[-1]["value"] = self._setting(choice["value"], f"{here}.value")
        return choices

    def _anchor(self, value: Any, path: str) -> float:
        number = self._scalar(value, path)
        if isinstance(number, bool | str):
            raise self._error(path, f"is a gradient of numbers, found {value!r} in it")
        return number

    def _scalar(self, value: Any, path: str) -> bool | int | float | str:
        """Return a scalar; YAML takes 1e-5, without a point, for a word."""
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                return value
            return number if math.isfinite(number) else value
        if not isinstance(value, bool | int | float):
            raise self._error(path, f"is a number, a word, true or false, found {value!r}")
        return value

    def _dtype(self, top: Mapping[str, Any], key: str) -> str | None:
        found = self._text(top, key, "")
        if found is not None and found not in DTYPES:
            raise unknown(f"{key} in {self.where}", found, DTYPES)
        return found

    def _tokenizer(self, top: Mapping[str, Any]) -> str | None:
        """Return where the tokenizer comes from."""
        if "tokenizer" not in top:
            return self._text(top, "tokenizer_source", "")
        tokenizer = self._mapping(top["tokenizer"], "tokenizer")
        for key in tokenizer:
            if key != "source":
                raise self._error(f"tokenizer.{key}", "is not supported: only a source, without tokens of its own, is")
        return self._text(tokenizer, "source", "tokenizer")

    def _known(self, found: Mapping[str, Any], known: Sequence[str], path: str, of: str = "") -> None:
        """Refuse keys that are not known, or warn of them."""
        for key in found:
            if key not in known:
                error = unknown(
                    f"key in {self.where}:", f"{path}.{key}".lstrip("."), [_join(path, one) for one in known]
                )
                if self.warn is None:
                    raise WeightspaceError(f"{error}{_owner(of)}")
                self.warn(f"{_join(path, str(key))} in {self.where} is not known{of} and is left out.")

    def _mapping(self, value: Any, path: str) -> Mapping[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self._error(path, f"is a mapping of keys to values, found {_kind(value)}")
        return value

    def _list(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._error(path, f"is a list with an entry or more, found {_kind(value)}")
        return value

    def _text(self, holder: Mapping[str, Any], key: str, path: str) -> str | None:
        value = holder.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise self._error(_join(path, key), f"is a piece of text, found {_kind(value)}")
        return value

    def _error(self, path: str, problem: str) -> WeightspaceError:
        return WeightspaceError(f"{self.where}: {path} {problem}.")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _owner(of: str) -> str:
    return f" These are the parameters{of}." if of else ""


def _kind(value: Any) -> str:
    """Say what a value is, briefly."""
    if value is None:
        return "nothing"
    return repr(value)[:60] if isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"
