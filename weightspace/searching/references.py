"""Reference merges of the same models, which a search is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightspace.checkpoints.yaml_file import read_yaml
from weightspace.merging.recipe.types import Recipe
from weightspace.searching.candidates import single_model

#: Scaling factors of task arithmetic, of which the best on validation data is compared.
LAMBDAS = tuple(round(0.1 * index, 1) for index in range(1, 11))

#: The paper's defaults of TIES (Yadav et al. 2023, https://arxiv.org/abs/2306.01708).
_TIES = {"density": 0.2, "lambda": 1.0}


@dataclass(frozen=True)
class Reference:
    """A reference.

    Attributes:
        name: its row in the table; of several references of one name, the best on validation data counts.
        text: the recipe as YAML.
        note: identifies the best of them: a model, or a parameter.
        mixed: whether it is a mixture.
    """

    name: str
    text: str
    note: str = ""
    mixed: bool = True


def references_of(recipe: Recipe, further: Sequence[str] = ()) -> list[Reference]:
    """Return the references for a recipe: single models, the mean, task arithmetic and TIES.

    Those of several documents, or of steps after a merge, are of the models of all documents. There are none for a
    recipe that moves layers or modules (see ``reason_for_none``).

    Args:
        recipe: a recipe without searched values.
        further: models that could have been chosen instead, which are single models only.
    """
    if reason_for_none(recipe):
        return []
    base, models = _base_of(recipe), models_of(recipe)
    tuned = [model for model in models if model != base]
    single = dict.fromkeys((*models, *further))
    references = [Reference("best single model", single_model(model), model, mixed=False) for model in single]
    if len(tuned) > 1:
        references.append(Reference("uniform", _merge("linear", tuned, recipe, {"normalize": True})))
    if base is not None and tuned:
        for factor in LAMBDAS:
            text = _merge("task_arithmetic", tuned, recipe, {"lambda": factor}, base)
            references.append(Reference("task arithmetic, λ tuned", text, f"λ = {factor:g}"))
        references.append(Reference("TIES, defaults", _merge("ties", tuned, recipe, _TIES, base)))
    return references


def reason_for_none(recipe: Recipe) -> str:
    """Return why a recipe has no references, or an empty text if it has some."""
    documents = (*recipe.documents, recipe)
    if any(document.modules for document in documents):
        return "the recipe merges modules of different models"
    sources = [source for document in documents for part in document.slices for source in part.sources]
    return "the recipe moves layers" if any(source.layer_range is not None for source in sources) else ""


def models_of(recipe: Recipe) -> list[str]:
    """Return the models of all documents, without the results of documents."""
    documents = (*recipe.documents, recipe)
    results = {document.name for document in documents}
    return [
        model for model in dict.fromkeys(model for one in documents for model in one.models) if model not in results
    ]


def _base_of(recipe: Recipe) -> str | None:
    """Return the base that all documents with one share; None if there is none, or several."""
    documents = (*recipe.documents, recipe)
    results = {document.name for document in documents}
    bases = {document.base for document in documents if document.base is not None and document.base not in results}
    return bases.pop() if len(bases) == 1 else None


def models_named_in(path: str) -> list[str]:
    """Return the models named in a recipe with searched values, including all choices of a model, as written."""
    found: list[str] = []
    waiting: list[Any] = list(read_yaml(Path(path)))
    while waiting:
        content = waiting.pop()
        if isinstance(content, Mapping):
            for key, value in content.items():
                if key in ("model", "base_model"):
                    values = value.get("choices", ()) if isinstance(value, Mapping) else (value,)
                    found += [one for one in values if isinstance(one, str)]
                else:
                    waiting.append(value)
        elif isinstance(content, list):
            waiting += content
    return found


def _merge(
    method: str, models: list[str], recipe: Recipe, parameters: Mapping[str, Any], base: str | None = None
) -> str:
    """Return a recipe of whole models with equal weights."""
    content: dict[str, Any] = {"merge_method": method}
    if base is not None:
        content["base_model"] = base
    content["models"] = [{"model": model, "parameters": {"weight": 1.0}} for model in models]
    content["parameters"] = dict(parameters)
    kept = {key: recipe.content[key] for key in ("dtype", "tokenizer_source", "tokenizer") if key in recipe.content}
    return yaml.safe_dump({**content, **kept}, sort_keys=False, allow_unicode=True)
