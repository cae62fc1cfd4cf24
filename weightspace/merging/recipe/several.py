"""Multi-document recipe files: find the output and the order in which to merge the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.model_reference import without_adapter
from weightspace.merging.recipe.types import Recipe


def arranged(recipes: Sequence[Recipe], where: str) -> Recipe:
    """Return the recipe of the output, with the other documents in an order in which they can be merged.

    The output is the document without a name, or the last one if all have names. Names take precedence over paths: a
    model with the name of another document is that document's result.

    Args:
        recipes: the documents of a file.
        where: name of the file in errors.

    Raises:
        WeightspaceError: two documents share a name, several have none, or documents depend on each other in a cycle.
    """
    unnamed = [index for index, recipe in enumerate(recipes) if recipe.name is None]
    if len(unnamed) > 1:
        raise WeightspaceError(
            f"{where}: {len(unnamed)} of {len(recipes)} documents have no name; expected at most one, the output. The "
            "others need a name by which they are used as models."
        )
    output = unnamed[0] if unnamed else len(recipes) - 1
    numbers: dict[str, int] = {}
    for index, recipe in enumerate(recipes):
        if recipe.name is not None and numbers.setdefault(recipe.name, index) != index:
            raise WeightspaceError(f"{where}: two documents are named {recipe.name!r}; expected distinct names.")
    sorter = TopologicalSorter({index: _used(recipe, numbers) for index, recipe in enumerate(recipes)})
    try:
        order = [index for index in sorter.static_order() if index != output]
    except CycleError as error:
        cycle = " → ".join(str(recipes[index].name) for index in error.args[1][:5])
        raise WeightspaceError(
            f"{where}: a document uses its own result as a model: {cycle}. Expected no cycles."
        ) from None
    return replace(recipes[output], documents=tuple(recipes[index] for index in order))


def used_documents(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the other documents that the output depends on, in order."""
    numbers = {str(document.name): index for index, document in enumerate(recipe.documents)}
    used = set(_used(recipe, numbers))
    for index in reversed(range(len(recipe.documents))):
        if index in used:
            used.update(_used(recipe.documents[index], numbers))
    return tuple(document for index, document in enumerate(recipe.documents) if index in used)


def _used(recipe: Recipe, numbers: Mapping[str, int]) -> list[int]:
    """Return the indices of the documents whose results a document uses."""
    sources = [*recipe.models, *([recipe.tokenizer_source] if recipe.tokenizer_source else [])]
    return sorted({numbers[name] for name in map(without_adapter, sources) if name in numbers})
