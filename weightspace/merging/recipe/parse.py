"""Parse merge recipes in mergekit's YAML format.

Paths are relative to the working directory. Unknown keys, and keys that mergekit ignores, are errors that name the
key, or warnings if the caller accepts warnings. Extensions of mergekit's format are ``evidence`` and ``stack`` of a
source, and further methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightspace.checkpoints.yaml_file import parse_yaml, read_yaml
from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.document import Document
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.nested import flattened
from weightspace.merging.recipe.parameters import takes_base_as_model
from weightspace.merging.recipe.reader import RecipeReader
from weightspace.merging.recipe.several import arranged
from weightspace.merging.recipe.types import DTYPES, Recipe, Slice, Source, Warn

__all__ = ["DTYPES", "Recipe", "Slice", "Source", "Warn", "parse_recipe", "read_recipe", "recipe_in", "recipe_of"]


def read_recipe(path: Path, *, warn: Warn | None = None, ignored: Warn | None = None) -> Recipe:
    """Read a recipe from a file.

    Args:
        path: a YAML file with one document, or several that refer to each other by name.
        warn: called with a one-line message about each unknown key; None makes them errors.
        ignored: called with a one-line message about each key without effect; None makes them errors.

    Raises:
        WeightspaceError: the file cannot be read or is not a valid recipe; the message names the key.
    """
    return recipe_in(read_yaml(path), str(path), warn, ignored)


def parse_recipe(text: str, where: str, *, warn: Warn | None = None, ignored: Warn | None = None) -> Recipe:
    """Read a recipe from text, named ``where`` in errors; see ``read_recipe``."""
    return recipe_in(parse_yaml(text, where), where, warn, ignored)


def recipe_in(contents: Sequence[Any], where: str, warn: Warn | None = None, ignored: Warn | None = None) -> Recipe:
    """Return the recipe given by the parsed documents of a file; see ``read_recipe``."""
    documents = flattened(contents, where)
    recipes = [RecipeReader(Document(name, warn, ignored), content).recipe() for name, content in documents]
    written = [replace(recipe, is_document=True) for recipe in recipes]
    return written[0] if len(written) == 1 else arranged(written, where)


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
    quantise: str | Mapping[str, Any] | None = None,
    warn: Warn | None = None,
) -> Recipe:
    """Return the recipe that merges whole models.

    Args:
        sources: paths of the models.
        method: name of the method.
        base: path of the base.
        weights: one per model.
        parameters: the method's parameters by name; per-model parameters take a list with one value per model.
        evidence: paths of data statistics, one per model.
        dtype, out_dtype: dtype of the output.
        quantise: scheme of a quantised output, or the mapping of recipes.
        warn: see ``read_recipe``.

    Raises:
        WeightspaceError: a list does not have one value per model; or as in ``read_recipe``.
    """
    row = find_method(method)
    if isinstance(weights, Mapping):
        raise WeightspaceError(f"The weights are {weights!r}; expected a list of numbers, one per model.")
    if not isinstance(parameters, Mapping | None):
        raise WeightspaceError(f"The parameters are {parameters!r:.60}; expected a mapping of names to values.")
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
    if base is not None and base not in sources and takes_base_as_model(row, shared):
        raise WeightspaceError(f"Method {method!r} takes no base, but one was given. List it among the models.")
    content = {"merge_method": method, "models": models, "base_model": base, "parameters": shared}
    content |= {"dtype": dtype, "out_dtype": out_dtype, "quantise": quantise}
    given = {key: value for key, value in content.items() if value}
    return RecipeReader(Document("the options", warn, None), given).recipe()


def _one_each(name: str, values: Sequence[Any], models: int) -> Sequence[Any]:
    if len(values) != models:
        raise WeightspaceError(f"Found {len(values)} values of {name!r} for {models} models; expected one per model.")
    return values
