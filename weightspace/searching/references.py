"""Reference merges of the same models, which a search is compared with."""

from __future__ import annotations

from collections.abc import Mapping
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
        note: what the best of them is told by: a model, or a parameter.
        mixed: whether it is a mixture.
    """

    name: str
    text: str
    note: str = ""
    mixed: bool = True


def references_of(recipe: Recipe) -> list[Reference]:
    """Return the references for a recipe: single models, the mean, task arithmetic and TIES.

    A recipe of slices, modules or several documents has single models only, and none if they differ in their layers.

    Args:
        recipe: a recipe without searched values.
    """
    whole = (
        not recipe.documents
        and not recipe.modules
        and all(source.layer_range is None for part in recipe.slices for source in part.sources)
    )
    if not whole:
        return []
    base = recipe.base
    tuned = [model for model in recipe.models if model != base]
    references = [Reference("best single model", single_model(model), model, mixed=False) for model in recipe.models]
    if len(tuned) > 1:
        references.append(Reference("uniform", _merge("linear", tuned, recipe, {"normalize": True})))
    if base is not None and tuned:
        for factor in LAMBDAS:
            text = _merge("task_arithmetic", tuned, recipe, {"lambda": factor}, base)
            references.append(Reference("task arithmetic, λ tuned", text, f"λ = {factor:g}"))
        references.append(Reference("TIES, defaults", _merge("ties", tuned, recipe, _TIES, base)))
    return references


def models_of(path: str) -> list[str]:
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
